"""Conversions between mitmproxy's flows and the gateway; the request context of a flow."""

import re
import time

from mitmproxy import http

from ..gateway.access import Access
from ..gateway.callers import Caller, read_caller
from ..gateway.context import RequestContext
from ..gateway.messages import Response, header, json_response
from ..gateway.networks import Network, forwarded_address
from ..ollama.errors import error_body
from ..ollama.routes import dialect_of
from ..storage.token import Token

_UNPRINTABLE = re.compile(rb"[^\x21-\x7e]")

MAX_DIGITS = 18
"""Of a Content-Length that is read."""

_KEY = "balancer_context"


def attach(flow: http.HTTPFlow, context: RequestContext) -> None:
    """Attach the context to the flow; copies and saved flows do not have it."""
    vars(flow)[_KEY] = context


def context_of(flow: http.HTTPFlow) -> RequestContext | None:
    context: RequestContext | None = vars(flow).get(_KEY)
    return context


def detach(flow: http.HTTPFlow) -> RequestContext | None:
    """Detach the context from a finished flow."""
    context: RequestContext | None = vars(flow).pop(_KEY, None)
    return context


def flow_of(context: RequestContext) -> http.HTTPFlow | None:
    """The flow of a request; None if it did not come through mitmproxy."""
    flow = context.handle
    return flow if isinstance(flow, http.HTTPFlow) else None


def extract_caller(
    flow: http.HTTPFlow, token: Token, salt: bytes, access: Access | None = None, proxies: tuple[Network, ...] = ()
) -> Caller:
    """Identify the caller and remove its credentials from the flow."""
    peer, request = flow.client_conn.peername, flow.request
    address = str(peer[0]) if peer else None
    if proxies and address is not None:
        address = forwarded_address(address, header(request.headers.fields, b"x-forwarded-for"), proxies)
    if "proxyauth" in flow.metadata:  # mitmproxy's own record of name and password
        flow.metadata["proxyauth"] = (flow.metadata["proxyauth"][0], "")
    caller, request.headers.fields, request.data.path = read_caller(
        request.headers.fields,
        request.data.path,
        token,
        salt,
        client_id=flow.client_conn.id,
        address=address,
        **({} if access is None else {"find_key": access.find}),
    )
    return caller


def path_of(flow: http.HTTPFlow) -> str:
    return flow.request.data.path.partition(b"?")[0].decode("utf-8", "surrogateescape")


def declared_size(flow: http.HTTPFlow) -> int:
    """The bytes that the request's body has by its Content-Length; 0 without one, or with one that is no number."""
    length = header(flow.request.headers.fields, b"content-length") or ""
    if not (length.isascii() and length.isdigit()):
        return 0
    return int(length) if len(length) <= MAX_DIGITS else 10**MAX_DIGITS


def escape_target(request: http.Request) -> None:
    """Percent-encode non-ASCII and unprintable bytes in the target, as a browser does.

    Hosts then all read it alike, and it is harmless where it is shown.
    """
    if _UNPRINTABLE.search(request.data.path):
        request.data.path = _UNPRINTABLE.sub(lambda found: b"%%%02X" % found[0][0], request.data.path)


def to_mitmproxy(response: Response) -> http.Response:
    now = time.time()
    head = http.Response.make(response.status)
    return http.Response(
        b"HTTP/1.1", response.status, head.data.reason, http.Headers(response.fields), response.body, None, now, now
    )


def from_mitmproxy(response: http.Response, body: bytes) -> Response:
    """`body`: as much as has arrived."""
    return Response(response.status_code, response.headers.fields, body)


def note_refusal(flow: http.HTTPFlow, reason: str) -> None:
    """Keep why the request is not routed."""
    context = context_of(flow)
    if context is not None and not context.is_routed:
        context.problem = reason


def error_of(flow: http.HTTPFlow, status: int, message: str) -> http.Response:
    """The balancer's own error; the context has the reason as well."""
    note_refusal(flow, message)
    body = error_body(dialect_of(path_of(flow)), status, message)
    return to_mitmproxy(json_response(status, body))


def closing(flow: http.HTTPFlow, response: http.Response) -> http.Response:
    """Close the client's HTTP/1 connection after this answer."""
    if flow.request.http_version.startswith("HTTP/1."):
        response.headers["Connection"] = "close"
    return response
