"""Client keys: who may do what, with which models and within which limits.

A key is known by the SHA-256 of its secret: with 256 random bits, a plain hash is as good as a slow one.
"""

import fnmatch
import functools
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .priority import Priority

PREFIX = "ob_"

SECRET = re.compile(rb"ob_[A-Za-z0-9_-]{43}")
"""What a key's secret looks like: by it, secret scanners find one, and so does what hides secrets here."""


class Right(StrEnum):
    INFER = "infer"
    """Run models, and list and show them."""
    MANAGE = "manage"
    """Pull, create, copy, delete, push and unload models."""
    READ = "read"
    """Agents, metrics, history, events and everybody's usage; no prompts."""
    OPERATE = "operate"
    """All of `read`; agents, drains and keys."""
    REPORT = "report"
    """Register an agent, report for it, drain and resume it."""


ALL_RIGHTS = frozenset(Right)

HOSTS_RIGHTS = frozenset((Right.REPORT,))


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit. So many requests or tokens may come at once; after that they come at the rate of a minute."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    parallel: int | None = None
    """Requests at once."""

    def __bool__(self) -> bool:
        return self != _UNLIMITED


_UNLIMITED = Limits()


@dataclass(frozen=True)
class Key:
    """A key without its secret. Times are in seconds since 1970."""

    name: str
    rights: frozenset[Right] = frozenset((Right.INFER,))
    models: tuple[str, ...] = ()
    """Patterns of the models that it may use, with * and ?; none: all."""
    limits: Limits = field(default_factory=Limits)
    priority: Priority = Priority.NORMAL
    created: float = 0.0
    expires: float | None = None
    disabled: bool = False
    note: str = ""
    agent: str | None = None
    """The only agent for which it may report: the key of a host that has joined with a code. None: any."""

    @property
    def is_hosts_own(self) -> bool:
        """Whether a host got it by joining, and it can only report. Such keys close no door to clients."""
        return self.agent is not None and self.rights == HOSTS_RIGHTS

    def has(self, right: Right) -> bool:
        return right in self.rights or (right is Right.READ and Right.OPERATE in self.rights)

    def problem(self, now: float) -> str | None:
        """Why the key is not valid; None if it is."""
        if self.disabled:
            return "this key is disabled"
        return "this key has expired" if self.expires is not None and self.expires <= now else None

    def may_use(self, model: str) -> bool:
        """Whether it may use the model, given by its canonical name."""
        return not self.models or self._pattern.fullmatch(model) is not None

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        return _matching(self.models)


def settings_of(key: Key) -> dict[str, Any]:
    """What an operator can set of a key, as JSON-serialisable data."""
    return {
        "rights": sorted(key.rights),
        "models": list(key.models),
        **{name: getattr(key.limits, name) for name in Limits.__slots__},
        "priority": key.priority.label,
        "expires": key.expires,
        "disabled": key.disabled,
        "note": key.note,
    }


def changes_of(before: Key, after: Key) -> dict[str, Any]:
    """The settings of a key that differ, as they are now."""
    old = settings_of(before)
    return {name: value for name, value in settings_of(after).items() if value != old[name]}


def _matching(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Matches canonical names. A pattern without a tag means the tag `latest`, or any tag if it ends in *."""
    whole = [each if ":" in each.rsplit("/", 1)[-1] or each.endswith("*") else f"{each}:latest" for each in patterns]
    return re.compile("|".join(fnmatch.translate(each.replace("[", "[[]")) for each in whole), re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Secret:
    """The hash of a secret, of which key it is, and until when (seconds since 1970) if it was replaced."""

    hash: bytes
    key: Key
    until: float | None = None


class Keyring:
    """All keys at one moment. It is replaced when they change."""

    def __init__(self, secrets: Iterable[Secret] = (), *, problem: str | None = None, had_keys: bool = False) -> None:
        self._by_hash: Mapping[bytes, Secret] = {each.hash: each for each in secrets}
        self.had_keys = had_keys or any(not secret.key.is_hosts_own for secret in self._by_hash.values())
        """Whether there is a key, or was one; those that hosts got by joining do not count."""
        self.problem = problem
        """Why no key can be checked; None if they can."""

    @property
    def names(self) -> set[str]:
        """The names of all keys."""
        return {secret.key.name for secret in self._by_hash.values()}

    @property
    def clients(self) -> int:
        """How many keys there are that hosts did not get by joining."""
        return len({secret.key.name for secret in self._by_hash.values() if not secret.key.is_hosts_own})

    def find(self, presented: bytes, now: float) -> Key | None:
        """The key of that secret, or of one that was replaced and is still valid. `Key.problem` is not looked at."""
        digest = hash_of(presented)
        found = self._by_hash.get(digest)  # the time tells of a hash, from which no secret can be made
        if found is None or not hmac.compare_digest(found.hash, digest):
            return None
        return None if found.until is not None and found.until <= now else found.key


def hash_of(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)
