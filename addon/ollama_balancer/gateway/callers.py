"""Identifies callers and removes their credentials from what is shown.

Flows are shown, saved and replayed, so they must not contain credentials. The agent still receives those that are not
the balancer's own, because a host may stand behind a server that requires a key. Cookies are dropped: they belong to
the balancer's address.
"""

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
"""Prefix length by which IPv6 clients are told apart: within one network a machine can use any address."""

LONGEST_KNOWN = 1024
"""Bytes of header names up to which the search for secrets is cached."""


LONGEST_TOKEN_FIELD = 16 * 1024
"""Bytes of a header value that are searched for the token."""


@functools.lru_cache(256)
def _has_secret_names(names: bytes) -> bool:
    """Cached, because most requests of a client have the same header names."""
    return _SECRET.search(names) is not None


@functools.lru_cache(1024)
def _fairness_group(address: str) -> tuple[str, bool]:
    """The fairness group of an address, and whether the group has several addresses."""
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


def fairness_key_of(address: str, key: str) -> FairnessKey:
    """The fairness key of a request from that address with that API key, or "".

    Anybody can make up API keys, so they only divide the share of their address and add nothing to it. The addresses of
    an IPv6 network divide the share of the network.
    """
    group, shared = _fairness_group(address)
    return (group, address) if shared else (group, key)


UNKNOWN = "unknown"
"""Stands for the name of a client without an address."""


@dataclass(frozen=True, eq=False, slots=True)
class Caller:
    """The client. `name` is a keyed hash of its API key, or else its address."""

    client_id: str
    name: str = UNKNOWN
    fairness_key: FairnessKey | None = None
    """Its share of the queue."""
    authorized: bool = False
    """Whether it presented the balancer's token."""
    credentials: Fields = field(default=(), repr=False)
    """Headers to forward to the agent that were removed from the flow."""
    target: Target | None = field(default=None, repr=False)
    """The masked target of the flow, and the original that is sent to the agent."""

    @property
    def has_wrong_token(self) -> bool:
        """Whether it presented a bearer token that is not the balancer's."""
        return not self.authorized and any(name.lower() == b"authorization" for name, _ in self.credentials)


class CallerReading(NamedTuple):
    """The caller, and the head of its request as it may be shown."""

    caller: Caller
    fields: Fields
    """The headers without credentials."""
    target: bytes
    """The path and query with secrets masked."""


def read_caller(
    fields: Fields, target: bytes, token: Token, salt: bytes, *, client_id: str, address: str | None
) -> CallerReading:
    """Identify the caller and separate its credentials from what may be shown."""
    client_name = address or UNKNOWN
    masked = None
    if b"?" in target or token.is_in(target):
        target, forwarded = mask_target(target, token)
        masked = (target, forwarded) if forwarded is not None else None
    names = b"\n".join([name for name, _ in fields])
    has_token = token.is_in(names) or token.is_in(b"\n".join([value for _, value in fields]))
    if not has_token and not (_has_secret_names(names) if len(names) <= LONGEST_KNOWN else _SECRET.search(names)):
        return CallerReading(
            Caller(client_id, client_name, fairness_key_of(client_name, ""), target=masked), fields, target
        )
    kept, secret, authorized = [], [], False
    for name, value in fields:
        if has_token and (token.is_in(name) or token.is_in(value)):
            parts = value[:LONGEST_TOKEN_FIELD].decode("utf-8", "surrogateescape").split()
            authorized |= (
                name.lower() == b"authorization"
                and len(parts) == 2
                and parts[0].lower() == "bearer"
                and token.matches(parts[1])
            )
        elif not _SECRET.search(name):
            kept.append((name, value))
        elif not (_NOT_FOR_AGENTS.search(name) or _is_basic_with(token, value)):
            secret.append((name, value))
    keys = [value for known in _KEYS for name, value in secret if name.lower() == known]
    key = f"key {hashlib.blake2b(keys[0], key=salt, digest_size=6).hexdigest()}" if keys else ""
    caller = Caller(client_id, key or client_name, fairness_key_of(client_name, key), authorized, tuple(secret), masked)
    return CallerReading(caller, tuple(kept), target)


def _is_basic_with(token: Token, value: bytes) -> bool:
    """Whether a Basic credential contains the token as user name or password."""
    scheme, _, coded = value[:LONGEST_TOKEN_FIELD].partition(b" ")
    if scheme.lower() != b"basic":
        return False
    try:
        return token.is_in(base64.b64decode(coded.strip() + b"=="))
    except ValueError:
        return False
