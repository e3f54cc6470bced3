"""The heads of requests and answers as they go on.

Where a request begins and ends is decided here alone: a client must not be able to make an agent read one request as
two.
"""

from __future__ import annotations

from collections.abc import Iterable

from .messages import Fields, Response, header

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


def by_name(fields: Fields) -> dict[bytes, bytes]:
    """The values of all headers, as they came, by name in lower case."""
    found: dict[bytes, bytes] = {}
    repeated: dict[bytes, list[bytes]] = {}
    for written, value in fields:
        name = written.lower()
        if name in found:
            repeated.setdefault(name, [found[name]]).append(value)
        else:
            found[name] = value
    for name, values in repeated.items():
        found[name] = b", ".join(values)
    return found


def for_client(fields: Fields, attempts: int, agents: str, *, own: bool) -> Fields:
    """The head of an answer, with how many agents were tried and, unless that is empty, which have answered.

    Unless it is the balancer's own answer, what is between it and the agent is taken out, and so is all by which a
    browser would take the answer for a page of the balancer.
    """
    if own:
        unwanted = _COUNT_AND_NAME if agents else _COUNT
    elif (header(fields, b"connection") or "").lower() == "close":
        # mitmproxy still has to see that the connection ends with this answer.
        unwanted = _NOT_FROM_AGENTS - {b"connection"}
    else:
        unwanted = _NOT_FROM_AGENTS
    kept = [field for field in fields if field[0].lower() not in unwanted]
    if not own:
        _make_inert(kept)
    kept.append((_ATTEMPTS, b"%d" % attempts))
    if agents:
        kept.append((_AGENT, agents.encode("utf-8", "surrogateescape")))
    return tuple(kept)


def refusal_for_client(response: Response, agent: str) -> Response:
    """A host's answer as it is passed on as the balancer's own: what a client may have of it, and whose it is."""
    fields = [field for field in response.fields if field[0].lower() not in _NOT_FROM_AGENTS]
    _make_inert(fields)
    fields.append((_AGENT, agent.encode("utf-8", "surrogateescape")))
    return Response(response.status, tuple(fields), response.body)


def _make_inert(fields: list[tuple[bytes, bytes]]) -> None:
    for at, (name, value) in enumerate(fields):
        if name.lower() == b"content-type" and value.partition(b";")[0].strip().lower() not in ANSWER_TYPES:
            fields[at] = name, _OPAQUE_TYPE
    fields += _INERT


def for_agent(
    fields: Fields, *, content_length: int | None, via: str | None, credentials: Fields, host: bytes | None
) -> Fields:
    """The head that an agent gets of a request: without hop-by-hop headers and what is meant for the balancer.

    `content_length` is that of the body at hand, whatever the client called it; -1: none is needed; None: the body is
    still to come, with the client's framing. `via` names this balancer, so that it knows its own requests should they
    come back to it. `credentials` are the client's headers that people do not see; where the head has one of that name,
    a person set it. `host` takes the place of the client's.
    """
    unwanted = _NOT_FOR_AGENTS if content_length is None else _NOT_FOR_AGENTS_WITH_BODY
    connection = header(fields, b"connection")
    if connection is not None:
        connection_options = set(connection.lower().replace(",", " ").split()) - _NEVER_HOP_BY_HOP
        unwanted |= {name.encode("utf-8", "surrogateescape") for name in connection_options}
    if host is not None:
        kept = [field for field in fields if (name := field[0].lower()) not in unwanted and name != b"host"]
        kept.insert(0, (b"Host", host))
    else:
        kept = [field for field in fields if field[0].lower() not in unwanted]
    if content_length is not None and content_length >= 0:
        kept.append((b"Content-Length", b"%d" % content_length))
    if credentials:
        names = {name.lower() for name, _ in fields}
        kept += [field for field in credentials if field[0].lower() not in names]
    if via is not None:
        kept.append((b"Via", via.encode()))
    return tuple(kept)
