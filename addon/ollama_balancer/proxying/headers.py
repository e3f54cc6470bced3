"""The head of a request as its agent gets it.

Where it begins and ends is decided here alone: a client must not be able to make an agent read one request as two.
"""

from __future__ import annotations

import copy

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
_NOT_FOR_CLIENTS = frozenset(name.encode() for name in NOT_FOR_CLIENTS)
_FRAMING = frozenset(("content-length", "transfer-encoding"))

_NEVER_HOP_BY_HOP = _FRAMING | {"content-type", "host", "authorization"}
"""What a client's Connection header may not take away."""

_NOT_FOR_AGENTS_WITH_BODY = _NOT_FOR_AGENTS | _FRAMING


def header(headers: http.Headers, name: str) -> str | None:
    """As `headers.get(name)`, which takes long where there is no such header."""
    wanted = name.lower().encode()
    for field in headers.fields:
        if field[0].lower() == wanted:
            return str(headers[name])
    return None


def for_client(headers: http.Headers) -> None:
    """Take out of an answer's head what is between the balancer and the agent."""
    unwanted = {name for name, _ in headers.fields if name.lower() in _NOT_FOR_CLIENTS}
    # mitmproxy still has to see that the connection ends with this answer.
    if unwanted and (header(headers, "connection") or "").lower() == "close":
        unwanted = {name for name in unwanted if name.lower() != b"connection"}
    if unwanted:
        headers.fields = tuple(field for field in headers.fields if field[0] not in unwanted)


def request_to_agent(request: http.Request, via: str | None = None, credentials: Fields = ()) -> http.Request:
    """A request without a body, whose head is that which the agent gets.

    Hop-by-hop headers and what is meant for the balancer are gone; the length is that of the body at hand, whatever
    the client called it. `via` names this balancer, so that it knows its own requests should they come back to it.
    `credentials` are the client's headers that the flow does not hold; where it has one of that name, a person set it.
    """
    data = request.data
    unwanted = _NOT_FOR_AGENTS if request.stream else _NOT_FOR_AGENTS_WITH_BODY
    connection = header(data.headers, "connection")
    if connection is not None:
        unwanted |= set(connection.lower().replace(",", " ").split()) - _NEVER_HOP_BY_HOP
    fields = [(name, value) for name, value in data.headers.fields if name.decode("latin-1").lower() not in unwanted]
    if not request.stream and (data.content or request.method in ("POST", "PUT", "PATCH")):
        fields.append((b"Content-Length", b"%d" % len(data.content or b"")))
    fields += [(name, value) for name, value in credentials if name not in request.headers]
    if via is not None:
        fields.append((b"Via", via.encode()))
    head = http.Request.__new__(http.Request)  # whose checks the data has passed already
    head.data = copy.copy(data)
    head.data.headers = http.Headers(fields)
    head.data.content = head.data.trailers = None
    return head
