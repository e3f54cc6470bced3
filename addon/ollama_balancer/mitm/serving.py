"""Serves a flow by an ASGI application."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from mitmproxy import http
from mitmproxy.addons import asgiapp

from ..api.paths import CALLER

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ..gateway.callers import Caller

COMPRESSED_FROM = 8 * 1024
"""Bytes from which an answer is compressed for clients that accept it."""

PACKED_IN_THREAD_FROM = 256 * 1024
"""Bytes from which compression runs in a thread, as it takes milliseconds."""


def _scheme_of(flow: http.HTTPFlow, caller: Caller) -> str:
    """By which the client calls, perhaps through a trusted proxy."""
    client = flow.client_conn
    through_proxy = client.peername is not None and str(client.peername[0]) != caller.address
    tls = client.tls or (through_proxy and flow.request.headers.get("x-forwarded-proto", "").lower() == "https")
    return "https" if tls else "http"


async def serve(app: ASGIApp, flow: http.HTTPFlow, caller: Caller) -> None:
    """Set the flow's response to what the application answers."""
    path, _, query = flow.request.data.path.partition(b"?")

    async def corrected(scope: Scope, receive: Receive, send: Send) -> None:
        # mitmproxy hands on the path quoted once more than it came; ASGI wants it unquoted.
        scope["path"] = unquote(path.decode("latin-1"))
        scope["raw_path"] = path
        scope["query_string"] = query
        scope["scheme"] = _scheme_of(flow, caller)
        if flow.request.is_http2 and not any(name == b"host" for name, _ in scope["headers"]):
            scope["headers"].append((b"host", (flow.request.host_header or "").encode("latin-1", "replace")))
        scope[CALLER] = caller
        await app(scope, receive, send)

    application: Any = corrected
    await asgiapp.serve(application, flow)
    response = flow.response
    assert response
    size = len(response.raw_content or b"")
    packed = response.headers.get("content-type") == "application/zip"
    if size >= COMPRESSED_FROM and not packed and "gzip" in flow.request.headers.get("accept-encoding", ""):
        if size >= PACKED_IN_THREAD_FROM:
            await asyncio.to_thread(response.encode, "gzip")
        else:
            response.encode("gzip")
        response.headers["vary"] = ", ".join(filter(None, [response.headers.get("vary"), "Accept-Encoding"]))
    if response.status_code == 204:
        response.headers.pop("content-length", None)
    elif flow.request.method == "HEAD":
        length = response.headers.get("content-length", "0")
        response.raw_content = b""
        response.headers["content-length"] = length
