"""Who sends a request, and what they present for it: read at its beginning and kept out of the flow.

Flows are shown, saved and sent again, so credentials must not be in them. The agent still gets those that are not the
balancer's own: a host may stand behind a server that asks for a key. Cookies go no further: they belong to the
balancer's address, and a host of the fleet has no business with them.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import re
from dataclasses import dataclass, field

from mitmproxy import http

from ..credentials import Token
from ..fleet.waiting import Share

type Fields = tuple[tuple[bytes, bytes], ...]

_SECRET = re.compile(rb"authorization|api-?key|token|secret|passw|credential|cookie", re.IGNORECASE)
_NOT_FOR_AGENTS = re.compile(rb"cookie|proxy-", re.IGNORECASE)
_TOKEN_HEADERS = frozenset((b"authorization", b"x-api-key", b"proxy-authorization"))
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


def share_of(address: str, key: str) -> Share:
    """Whose turns in the line a request from that address uses, which shows that key or "".

    Nobody has given these keys out, so a fresh one is as good as any: they share out the turns of their address, and
    buy none. The addresses of an IPv6 network share out the network's turns.
    """
    group, shared = _share_of(address)
    return (group, address) if shared else (group, key)


UNKNOWN = "unknown"
"""The name of a client that has no address."""


@dataclass(eq=False, slots=True)
class Caller:
    """`name` tells clients apart for people: by a hash of the API key that says nothing about it, else by address."""

    client_id: str
    name: str = UNKNOWN
    share: Share | None = None
    """Whose turns its requests use in the line."""
    authorized: bool = False
    """Whether the balancer's token was presented."""
    credentials: Fields = field(default=(), repr=False)
    """The headers that the agent is to get beside those of the flow."""


def take_caller(flow: http.HTTPFlow, token: Token, salt: bytes) -> Caller:
    """Read who sends the request, and take what they present out of the flow."""
    peer = flow.client_conn.peername
    who = str(peer[0]) if peer else UNKNOWN
    if "proxyauth" in flow.metadata:  # mitmproxy's own record of name and password
        flow.metadata["proxyauth"] = (flow.metadata["proxyauth"][0], "")
    headers = flow.request.headers
    names = b"\n".join([name for name, _ in headers.fields])
    if not (_tell_secrets(names) if len(names) <= LONGEST_KNOWN else _SECRET.search(names)):
        return Caller(flow.client_conn.id, who, share_of(who, ""))
    kept, secret, authorized = [], [], False
    for name, value in headers.fields:
        if not _SECRET.search(name):
            kept.append((name, value))
            continue
        words = value[:LONGEST_TOKEN_FIELD].decode("utf-8", "surrogateescape").split()
        if name.lower() in _TOKEN_HEADERS and any(map(token.matches, words)):
            authorized |= name.lower() == b"authorization" and len(words) == 2 and words[0].lower() == "bearer"
        elif not _NOT_FOR_AGENTS.search(name):
            secret.append((name, value))
    headers.fields = tuple(kept)
    keys = [value for known in _KEYS for name, value in secret if name.lower() == known]
    key = f"key {hashlib.blake2b(keys[0], key=salt, digest_size=6).hexdigest()}" if keys else ""
    return Caller(flow.client_conn.id, key or who, share_of(who, key), authorized, tuple(secret))
