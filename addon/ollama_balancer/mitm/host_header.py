"""Checks the Host header of a client as the real server does; the balancer itself does not need it.

mitmproxy needs a destination as soon as the head has arrived, and answers a request without one itself, in HTML. Load
balancers probe with HTTP/1.0 without Host, and some clients send an empty one.
"""

import re

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.net.http import url

_ALLOWED = re.compile(rb"[a-zA-Z0-9!$%&()*+,\-.:;=\[\]'_~]*")
"""As Go's package http allows it."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


def set_destination(request: http.Request, client: Client) -> None:
    """Set the provisional destination of a request: its Host, or the balancer's own address."""
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
    """The error of the Host header of an HTTP/1 request, in the server's words; None if it is valid."""
    data = request.data
    if not data.http_version.startswith(b"HTTP/1."):
        return None
    hosts = [value for name, value in data.headers.fields if len(name) == 4 and name.lower() == b"host"]
    if len(hosts) == 1:
        return None if _ALLOWED.fullmatch(hosts[0]) else "malformed Host header"
    if hosts:
        return "too many Host headers"
    return "missing required Host header" if data.http_version == b"HTTP/1.1" else None
