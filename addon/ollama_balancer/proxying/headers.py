"""The head of a request as its agent gets it.

Where it begins and ends is decided here alone: a client must not be able to make an agent read one request as two.
"""

from __future__ import annotations

from mitmproxy import http

from .callers import Fields

AGENT_HEADER = "X-Balancer-Agent"
ATTEMPTS_HEADER = "X-Balancer-Attempts"

HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
    )
)

NOT_FOR_CLIENTS = HOP_BY_HOP | {"set-cookie", "set-cookie2"}
"""An agent is not the owner of the address under which its answer comes."""

_NOT_FOR_AGENTS = HOP_BY_HOP | {"origin", AGENT_HEADER.lower()}
_FRAMING = frozenset(("content-length", "transfer-encoding"))

_NEVER_HOP_BY_HOP = _FRAMING | {"content-type", "host", "authorization"}
"""What a client's Connection header may not take away."""


def request_to_agent(request: http.Request, via: str | None = None, credentials: Fields = ()) -> http.Request:
    """A request without a body, whose head is that which the agent gets.

    Hop-by-hop headers and what is meant for the balancer are gone; the length is that of the body at hand, whatever
    the client called it. `via` names this balancer, so that it knows its own requests should they come back to it.
    `credentials` are the client's headers that the flow does not hold; where it has one of that name, a person set it.
    """
    data = request.data
    unwanted = _NOT_FOR_AGENTS | {
        name
        for value in request.headers.get_all("connection")
        for name in value.lower().replace(",", " ").split()
        if name not in _NEVER_HOP_BY_HOP
    }
    if not request.stream:
        unwanted |= _FRAMING
    fields = [(name, value) for name, value in data.headers.fields if name.decode("latin-1").lower() not in unwanted]
    if not request.stream and (data.content or request.method in ("POST", "PUT", "PATCH")):
        fields.append((b"Content-Length", b"%d" % len(data.content or b"")))
    fields += [(name, value) for name, value in credentials if name not in request.headers]
    if via is not None:
        fields.append((b"Via", via.encode()))
    return http.Request(
        data.host,
        data.port,
        data.method,
        data.scheme,
        data.authority,
        data.path,
        data.http_version,
        http.Headers(fields),
        None,
        None,
        data.timestamp_start,
        data.timestamp_end,
    )
