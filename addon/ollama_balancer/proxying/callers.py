"""Who sends a request, and what they present for it: read at its beginning and kept out of the flow.

Flows are shown, saved and sent again, so credentials must not be in them. The agent still gets those that are not the
balancer's own: a host may stand behind a server that asks for a key. Cookies go no further: they belong to the
balancer's address, and a host of the fleet has no business with them.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass, field

from mitmproxy import http

from ..credentials import Token

type Fields = tuple[tuple[bytes, bytes], ...]

_SECRET = re.compile(rb"authorization|api-?key|token|secret|passw|credential|cookie", re.IGNORECASE)
_NOT_FOR_AGENTS = re.compile(rb"cookie|proxy-", re.IGNORECASE)
_TOKEN_HEADERS = frozenset((b"authorization", b"x-api-key", b"proxy-authorization"))
_KEYS = (b"authorization", b"x-api-key")


LONGEST_KNOWN = 1024
"""Bytes of a request's header names for which it is remembered whether there is a secret among them."""


@functools.lru_cache(256)
def _tell_secrets(names: bytes) -> bool:
    """Most requests of a client have the same ones."""
    return _SECRET.search(names) is not None


@dataclass(eq=False, slots=True)
class Caller:
    """`name` tells clients apart: by a hash of the API key that says nothing about it, else by the address."""

    client_id: str
    name: str = "unknown"
    authorized: bool = False
    """Whether the balancer's token was presented."""
    credentials: Fields = field(default=(), repr=False)
    """The headers that the agent is to get beside those of the flow."""


def take_caller(flow: http.HTTPFlow, token: Token, salt: bytes) -> Caller:
    """Read who sends the request, and take what they present out of the flow."""
    peer = flow.client_conn.peername
    who = str(peer[0]) if peer else "unknown"
    if "proxyauth" in flow.metadata:  # mitmproxy's own record of name and password
        flow.metadata["proxyauth"] = (flow.metadata["proxyauth"][0], "")
    headers = flow.request.headers
    names = b"\n".join([name for name, _ in headers.fields])
    if not (_tell_secrets(names) if len(names) <= LONGEST_KNOWN else _SECRET.search(names)):
        return Caller(flow.client_conn.id, who)
    kept, secret, authorized = [], [], False
    for name, value in headers.fields:
        if not _SECRET.search(name):
            kept.append((name, value))
            continue
        words = value.decode("utf-8", "surrogateescape").split()
        if name.lower() in _TOKEN_HEADERS and any(map(token.matches, words)):
            authorized |= name.lower() == b"authorization" and len(words) == 2 and words[0].lower() == "bearer"
        elif not _NOT_FOR_AGENTS.search(name):
            secret.append((name, value))
    headers.fields = tuple(kept)
    keys = [value for key in _KEYS for name, value in secret if name.lower() == key]
    if keys:
        who = "key " + hashlib.blake2b(keys[0], key=salt, digest_size=6).hexdigest()
    return Caller(flow.client_conn.id, who, authorized, tuple(secret))
