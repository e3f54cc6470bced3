"""Join codes: each lets one host get a key of its own, once and for a limited time. Of a code only its hash is kept.

They are kept in memory: after a restart of the balancer, open codes have to be made anew.
"""

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from .access import hash_of

PREFIX = "join_"

DEFAULT_SECONDS = 3600
MIN_SECONDS = 60
MAX_SECONDS = 86_400

MAX_OPEN = 1000
"""Codes that may be open at once."""


class TooManyCodesError(Exception):
    """MAX_OPEN codes are open."""


@dataclass(frozen=True, slots=True)
class JoinCode:
    hash: bytes
    agent: str | None
    """The name under which the host joins; None: the host's own, if no other host has joined under it."""
    until: float


class JoinCodes:
    """The codes that are open. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open: dict[bytes, JoinCode] = {}

    def __len__(self) -> int:
        return len(self._open)

    def make(self, agent: str | None, seconds: float) -> str:
        """A new code, valid for that long. TooManyCodesError."""
        now = self._clock()
        self._open = {each.hash: each for each in self._open.values() if each.until > now}
        if len(self._open) >= MAX_OPEN:
            raise TooManyCodesError
        text = PREFIX + secrets.token_urlsafe(24)
        code = JoinCode(hash_of(text.encode()), agent, now + seconds)
        self._open[code.hash] = code
        return text

    def take(self, presented: bytes) -> JoinCode | None:
        """Use up the code. None: it is not open, whether it was used, has expired or never was one."""
        digest = hash_of(presented)
        code = self._open.get(digest)  # the time tells of a hash, from which no code can be made
        if code is None or not hmac.compare_digest(code.hash, digest):
            return None
        del self._open[digest]
        return code if code.until > self._clock() else None

    def put_back(self, code: JoinCode) -> None:
        """It was not used after all."""
        self._open[code.hash] = code
