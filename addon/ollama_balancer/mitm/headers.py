"""The head of a request as its agent gets it.

Where it begins and ends is decided here alone: a client must not be able to make an agent read one request as two.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mitmproxy import http

from ..gateway.callers import Fields, Target

if TYPE_CHECKING:
    from ..core.agent import Address

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

NOT_FOR_CLIENTS = HOP_BY_HOP | {
    "alt-svc",
    "clear-site-data",
    "content-security-policy",
    "refresh",
    "service-worker-allowed",
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
    "x-content-type-options",
}
"""An agent is not the owner of the address under which its answer comes: it sets nothing for the whole of it."""

ANSWER_TYPES = frozenset(
    (b"application/json", b"application/x-ndjson", b"text/event-stream", b"text/plain", b"application/octet-stream")
)
"""The content types of Ollama's API. Others could be a page that acts in the balancer's name."""

_OPAQUE_TYPE = b"application/octet-stream"

_INERT = ((b"X-Content-Type-Options", b"nosniff"), (b"Content-Security-Policy", b"sandbox"))
"""Have a browser run nothing of an agent's answer."""

_FRAMING = frozenset(("content-length", "transfer-encoding"))

_NEVER_HOP_BY_HOP = _FRAMING | {"content-type", "host", "authorization"}
"""What a client's Connection header may not take away."""


def _encoded(names: Iterable[str]) -> frozenset[bytes]:
    return frozenset(name.lower().encode() for name in names)


_NOT_FOR_AGENTS = _encoded(HOP_BY_HOP | {"origin", AGENT_HEADER})
_NOT_FOR_AGENTS_WITH_BODY = _NOT_FOR_AGENTS | _encoded(_FRAMING)
_NOT_FROM_AGENTS = _encoded(NOT_FOR_CLIENTS | {AGENT_HEADER, ATTEMPTS_HEADER})
_COUNT, _COUNT_AND_NAME = _encoded((ATTEMPTS_HEADER,)), _encoded((AGENT_HEADER, ATTEMPTS_HEADER))
_AGENT, _ATTEMPTS = AGENT_HEADER.encode(), ATTEMPTS_HEADER.encode()


def header(headers: http.Headers, name: bytes) -> str | None:
    """As `headers.get(name)`, which takes long. The name is in lower case."""
    found = [value for written, value in headers.fields if len(written) == len(name) and written.lower() == name]
    return b", ".join(found).decode("utf-8", "surrogateescape") if found else None


def first_header(headers: http.Headers, name: bytes) -> str | None:
    """The same of the first header of that name alone."""
    for written, value in headers.fields:
        if len(written) == len(name) and written.lower() == name:
            return value.decode("utf-8", "surrogateescape")
    return None


def by_name(headers: http.Headers) -> dict[bytes, bytes]:
    """The same for all of them: their values, as they came, by name in lower case."""
    found: dict[bytes, bytes] = {}
    repeated: dict[bytes, list[bytes]] = {}
    for written, value in headers.fields:
        name = written.lower()
        if name in found:
            repeated.setdefault(name, [found[name]]).append(value)
        else:
            found[name] = value
    for name, values in repeated.items():
        found[name] = b", ".join(values)
    return found


def asks_for_websocket(request: http.Request) -> bool:
    """Whether an HTTP/1.1 request wants its connection to become a WebSocket."""
    wanted = header(request.headers, b"upgrade")
    return wanted is not None and "websocket" in wanted.lower() and request.http_version == "HTTP/1.1"


def for_client(headers: http.Headers, attempts: int, agents: str, *, own: bool) -> None:
    """Say in an answer's head how many agents were tried and, unless that is empty, which have answered.

    Unless it is the balancer's own answer, what is between it and the agent is taken out, and so is all by which a
    browser would take the answer for a page of the balancer.
    """
    if own:
        unwanted = _COUNT_AND_NAME if agents else _COUNT
    elif (header(headers, b"connection") or "").lower() == "close":
        # mitmproxy still has to see that the connection ends with this answer.
        unwanted = _NOT_FROM_AGENTS - {b"connection"}
    else:
        unwanted = _NOT_FROM_AGENTS
    fields = [field for field in headers.fields if field[0].lower() not in unwanted]
    if not own:
        _make_inert(fields)
    fields.append((_ATTEMPTS, b"%d" % attempts))
    if agents:
        fields.append((_AGENT, agents.encode("utf-8", "surrogateescape")))
    headers.fields = tuple(fields)


def refusal_for_client(headers: http.Headers) -> None:
    """Of a host's answer that is passed on as the balancer's own, leave what a client may have."""
    fields = [field for field in headers.fields if field[0].lower() not in _NOT_FROM_AGENTS]
    _make_inert(fields)
    headers.fields = tuple(fields)


def _make_inert(fields: list[tuple[bytes, bytes]]) -> None:
    for at, (name, value) in enumerate(fields):
        if name.lower() == b"content-type" and value.partition(b";")[0].strip().lower() not in ANSWER_TYPES:
            fields[at] = name, _OPAQUE_TYPE
    fields += _INERT


def keep_alive(request: http.Request, response: http.Response) -> None:
    """Tell a client of HTTP/1.0 that its connection goes on, where it does: it would wait for the end otherwise."""
    if response.data.http_version != b"HTTP/1.0" and "content-length" in response.headers:
        asked = (header(request.headers, b"connection") or "").lower()
        if asked == "keep-alive":
            response.headers["Connection"] = asked


def request_to_agent(
    request: http.Request,
    via: str | None = None,
    credentials: Fields = (),
    address: Address | None = None,
    target: Target | None = None,
) -> http.Request:
    """A request without a body, whose head is that which the agent at that address gets.

    The request itself stays as the client sent it: that is what people see, save, and send again.

    Hop-by-hop headers and what is meant for the balancer are gone; the length is that of the body at hand, whatever
    the client called it. `via` names this balancer, so that it knows its own requests should they come back to it.
    `credentials` are the client's headers that the flow does not hold; where it has one of that name, a person set it.
    `target`: a path and query in which secrets are masked, and what the agent gets in their place. A person may have
    set another one since.
    """
    data = request.data
    unwanted = _NOT_FOR_AGENTS if request.stream else _NOT_FOR_AGENTS_WITH_BODY
    connection = header(data.headers, b"connection")
    if connection is not None:
        named = set(connection.lower().replace(",", " ").split()) - _NEVER_HOP_BY_HOP
        unwanted |= {name.encode("utf-8", "surrogateescape") for name in named}
    if address is not None:
        fields = [
            field for field in data.headers.fields if (name := field[0].lower()) not in unwanted and name != b"host"
        ]
        fields.insert(0, (b"Host", address.text.encode()))
    else:
        fields = [field for field in data.headers.fields if field[0].lower() not in unwanted]
    if not request.stream and (data.content or request.method in ("POST", "PUT", "PATCH")):
        fields.append((b"Content-Length", b"%d" % len(data.content or b"")))
    fields += [(name, value) for name, value in credentials if name not in request.headers]
    if via is not None:
        fields.append((b"Via", via.encode()))
    # Not by mitmproxy's constructors, whose checks the data has passed already.
    headers = http.Headers.__new__(http.Headers)
    headers.fields = tuple(fields)
    head = http.Request.__new__(http.Request)
    head.data = type(data).__new__(type(data))
    vars(head.data).update(vars(data), headers=headers, content=None, trailers=None)
    if target is not None and data.path == target[0]:
        head.data.path = target[1]
    if address is not None:
        vars(head.data).update(scheme=b"http", authority=b"", host=address.host, port=address.port)
    return head
