"""Who sends a request, and what they present for it: read at its beginning and kept out of what is shown of it.

Requests are shown, saved and sent again, so credentials must not be in them. The agent still gets those that are not
the balancer's own: a host may stand behind a server that asks for a key. Cookies go no further: they belong to the
balancer's address, and a host of the fleet has no business with them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import ipaddress
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from ..core.queue import FairnessKey
from ..storage.token import Token
from .masking import mask_target
from .messages import Fields

type Target = tuple[bytes, bytes]

_SECRET = re.compile(
    rb"auth(?!or(?!iz))|(?:api|access|subscription|functions|account|master|private)[-_]?key|token|secret|passw|credential|"
    rb"cookie|signature",
    re.IGNORECASE,
)
_NOT_FOR_AGENTS = re.compile(rb"cookie|proxy-", re.IGNORECASE)
_KEYS = (b"authorization", b"x-api-key")


NETWORK_BITS = 64
"""Of an IPv6 address, what tells clients apart: within its network a machine takes what addresses it likes."""

LONGEST_KNOWN = 1024
"""Bytes of a request's header names for which it is remembered whether there is a secret among them."""


LONGEST_TOKEN_FIELD = 16 * 1024
"""Bytes of a header in which the balancer's token is looked for."""


@functools.lru_cache(256)
def _tell_secrets(names: bytes) -> bool:
    """Most requests of a client have the same ones."""
    return _SECRET.search(names) is not None


@functools.lru_cache(1024)
def _share_of(address: str) -> tuple[str, bool]:
    """The group whose turns are used from that address, and whether the address is only one of it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address, False
    if isinstance(ip, ipaddress.IPv4Address):
        return address, False
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped), False
    network = ipaddress.IPv6Network((int(ip) >> (128 - NETWORK_BITS) << (128 - NETWORK_BITS), NETWORK_BITS))
    return str(network), True


def share_of(address: str, key: str) -> FairnessKey:
    """Whose turns in the line a request from that address uses, which shows that key or "".

    Nobody has given these keys out, so a fresh one is as good as any: they share out the turns of their address, and
    buy none. The addresses of an IPv6 network share out the network's turns.
    """
    group, shared = _share_of(address)
    return (group, address) if shared else (group, key)


UNKNOWN = "unknown"
"""The name of a client that has no address."""


@dataclass(frozen=True, eq=False, slots=True)
class Caller:
    """`name` tells clients apart for people: by a hash of the API key that says nothing about it, else by address."""

    client_id: str
    name: str = UNKNOWN
    share: FairnessKey | None = None
    """Whose turns its requests use in the line."""
    authorized: bool = False
    """Whether the balancer's token was presented."""
    credentials: Fields = field(default=(), repr=False)
    """The headers that the agent is to get beside those of the flow."""
    target: Target | None = field(default=None, repr=False)
    """The path and query of the flow, in which secrets are masked, and those that the agent is to get."""

    @property
    def has_wrong_token(self) -> bool:
        """Whether a token was presented as the balancer's is, which is another."""
        return not self.authorized and any(name.lower() == b"authorization" for name, _ in self.credentials)


class Introduction(NamedTuple):
    """Who sends a request, and what of its head may be shown."""

    caller: Caller
    fields: Fields
    """The headers without credentials."""
    target: bytes
    """The path and query with secrets masked."""


def read_caller(
    fields: Fields, target: bytes, token: Token, salt: bytes, *, client_id: str, address: str | None
) -> Introduction:
    """Read who sends the request from `address`, and part what they present from what may be shown."""
    who = address or UNKNOWN
    masked = None
    if b"?" in target or token.is_in(target):
        target, given = mask_target(target, token)
        masked = (target, given) if given is not None else None
    names = b"\n".join([name for name, _ in fields])
    own = token.is_in(names) or token.is_in(b"\n".join([value for _, value in fields]))
    if not own and not (_tell_secrets(names) if len(names) <= LONGEST_KNOWN else _SECRET.search(names)):
        return Introduction(Caller(client_id, who, share_of(who, ""), target=masked), fields, target)
    kept, secret, authorized = [], [], False
    for name, value in fields:
        if own and (token.is_in(name) or token.is_in(value)):
            words = value[:LONGEST_TOKEN_FIELD].decode("utf-8", "surrogateescape").split()
            authorized |= (
                name.lower() == b"authorization"
                and len(words) == 2
                and words[0].lower() == "bearer"
                and token.matches(words[1])
            )
        elif not _SECRET.search(name):
            kept.append((name, value))
        elif not (_NOT_FOR_AGENTS.search(name) or _is_basic_with(token, value)):
            secret.append((name, value))
    keys = [value for known in _KEYS for name, value in secret if name.lower() == known]
    key = f"key {hashlib.blake2b(keys[0], key=salt, digest_size=6).hexdigest()}" if keys else ""
    caller = Caller(client_id, key or who, share_of(who, key), authorized, tuple(secret), masked)
    return Introduction(caller, tuple(kept), target)


def _is_basic_with(token: Token, value: bytes) -> bool:
    """Whether it is a name and password, as a URL may have them, one of which is the token."""
    scheme, _, coded = value[:LONGEST_TOKEN_FIELD].partition(b" ")
    if scheme.lower() != b"basic":
        return False
    try:
        return token.is_in(base64.b64decode(coded.strip() + b"=="))
    except ValueError:
        return False
