"""The Host header of a client, of which the balancer needs nothing: it is checked as the real server checks it.

mitmproxy wants to know a destination as soon as the head is there, and answers a request without one itself, in HTML.
Load balancers probe with HTTP/1.0 and no Host, and some clients send an empty one.
"""

from __future__ import annotations

import re

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.net.http import url

_ALLOWED = re.compile(rb"[a-zA-Z0-9!$%&()*+,\-.:;=\[\]'_~]*")
"""As Go's package http allows it."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


def set_destination(request: http.Request, client: Client) -> None:
    """Say where the request was to go, until its agent is known: what the Host names, or the balancer's own address."""
    data = request.data
    if data.host:
        return
    scheme = "https" if client.tls else "http"
    try:
        host, port = url.parse_authority(request.host_header or "", check=True)
    except ValueError:
        host, port = client.sockname[:2]
    data.host, data.port, data.scheme = host, port or _DEFAULT_PORTS[scheme], scheme.encode()


def host_problem(request: http.Request) -> str | None:
    """What is wrong with the Host of an HTTP/1 request, in the real server's words; None: nothing."""
    data = request.data
    if not data.http_version.startswith(b"HTTP/1."):
        return None
    hosts = [value for name, value in data.headers.fields if len(name) == 4 and name.lower() == b"host"]
    if len(hosts) == 1:
        return None if _ALLOWED.fullmatch(hosts[0]) else "malformed Host header"
    if hosts:
        return "too many Host headers"
    return "missing required Host header" if data.http_version == b"HTTP/1.1" else None
