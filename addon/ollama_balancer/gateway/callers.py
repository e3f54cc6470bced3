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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ..core.access import Key
from ..core.priority import Priority
from ..core.tickets import FairnessKey
from ..storage.token import Token
from .masking import is_ours, mask_target
from .messages import Fields

type Target = tuple[bytes, bytes]

_SECRET = re.compile(
    rb"auth(?!or(?!iz))|(?:api|access|subscription|functions|account|master|private)[-_]?key|token|secret|passw|credential|"
    rb"cookie|signature",
    re.IGNORECASE,
)
_NOT_FOR_AGENTS = re.compile(rb"cookie|proxy-", re.IGNORECASE)
_KEYS = (b"authorization", b"x-api-key")
"""Headers in which a caller presents a key."""


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
    """The client. `name` is its key's, else a keyed hash of another API key, else its address."""

    client_id: str
    name: str = UNKNOWN
    address: str = UNKNOWN
    fairness_key: FairnessKey | None = None
    """Its share of the queue."""
    authorized: bool = False
    """Whether it presented the balancer's token."""
    key: Key | None = None
    """The key of the balancer that it presented, valid or not."""
    presented: bool = False
    """Whether it presented a token or key, whosever."""
    credentials: Fields = field(default=(), repr=False)
    """Headers to forward to the agent that were removed from the flow."""
    target: Target | None = field(default=None, repr=False)
    """The masked target of the flow, and the original that is sent to the agent."""
    priority: Priority = Priority.NORMAL
    """The highest that its requests may have in the queue."""

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
    fields: Fields,
    target: bytes,
    token: Token,
    salt: bytes,
    *,
    client_id: str,
    address: str | None,
    find_key: Callable[[bytes], Key | None] = lambda secret: None,
) -> CallerReading:
    """Identify the caller and separate its credentials from what may be shown. `find_key` finds the key of a secret."""
    address = address or UNKNOWN
    masked = None
    if b"?" in target or is_ours(target, token):
        target, forwarded = mask_target(target, token)
        masked = (target, forwarded) if forwarded is not None else None
    names = b"\n".join([name for name, _ in fields])
    named_ours, has_ours = is_ours(names, token), is_ours(b"\n".join([value for _, value in fields]), token)
    if not (named_ours or has_ours) and not (
        _has_secret_names(names) if len(names) <= LONGEST_KNOWN else _SECRET.search(names)
    ):
        caller = Caller(client_id, address, address, fairness_key_of(address, ""), target=masked)
        return CallerReading(caller, fields, target)
    kept, secret, presented, authorized = [], [], [], False
    for name, value in fields:
        is_secret = _SECRET.search(name) is not None
        scheme, credentials = _credentials(value) if is_secret else (b"", [])
        if is_secret and name.lower() in _KEYS:
            presented += credentials[-1:]
        if (named_ours and is_ours(name, token)) or (has_ours and is_ours(value, token)):
            authorized |= (
                (name.lower(), scheme) == (b"authorization", b"bearer")
                and len(credentials) == 1
                and token.matches(credentials[0].decode("utf-8", "surrogateescape"))
            )
        elif not is_secret:
            kept.append((name, value))
        elif not _NOT_FOR_AGENTS.search(name) and not (scheme == b"basic" and is_ours(b":".join(credentials), token)):
            secret.append((name, value))
    key = next((found for each in presented if (found := find_key(each)) is not None), None)
    foreign = [value for known in _KEYS for name, value in secret if name.lower() == known]
    if key is not None:
        shown, fairness_key = key.name, (f"key {key.name}", address)
    else:
        digest = hashlib.blake2b(foreign[0], key=salt, digest_size=6).hexdigest() if foreign else ""
        shown = f"key {digest}" if digest else address
        fairness_key = fairness_key_of(address, shown if digest else "")
    caller = Caller(
        client_id,
        shown,
        address,
        fairness_key,
        authorized,
        key,
        bool(presented),
        tuple(secret),
        masked,
        Priority.NORMAL if key is None else key.priority,
    )
    return CallerReading(caller, tuple(kept), target)


def _credentials(value: bytes) -> tuple[bytes, list[bytes]]:
    """The scheme in lower case and the token, or name and password, of a value; without a scheme, all of it."""
    scheme, _, rest = value[:LONGEST_TOKEN_FIELD].strip().partition(b" ")
    rest = rest.strip()
    if not rest:
        return b"", [scheme] if scheme else []
    if scheme.lower() != b"basic":
        return scheme.lower(), [] if b" " in rest else [rest]
    try:
        return b"basic", base64.b64decode(rest + b"==").split(b":", 1)
    except ValueError:
        return b"basic", []
