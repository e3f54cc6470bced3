"""Request and response heads as they are forwarded.

The framing of a request is decided here alone, so that a client cannot smuggle a second request to an agent.
"""

import re
from collections.abc import Iterable

from .messages import Fields, Response, header

AGENT_HEADER = "X-Balancer-Agent"
ATTEMPTS_HEADER = "X-Balancer-Attempts"
PRIORITY_HEADER = "X-Balancer-Priority"

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
"""Response headers with an effect beyond the response itself: an agent does not own the address of the balancer."""

ANSWER_TYPES = frozenset(
    (b"application/json", b"application/x-ndjson", b"text/event-stream", b"text/plain", b"application/octet-stream")
)
"""Content types of Ollama's API. A browser could run others as a page of the balancer."""

_OPAQUE_TYPE = b"application/octet-stream"

_INERT = ((b"X-Content-Type-Options", b"nosniff"), (b"Content-Security-Policy", b"sandbox"))
"""Keep browsers from executing anything in an agent's answer."""

_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
"""Control characters but the tab; a terminal obeys those from U+0080 on, too."""

_FRAMING = frozenset(("content-length", "transfer-encoding"))

_NEVER_HOP_BY_HOP = _FRAMING | {"content-type", "host", "authorization"}
"""Headers that a Connection header may not remove."""


def _encoded(names: Iterable[str]) -> frozenset[bytes]:
    return frozenset(name.lower().encode() for name in names)


_NOT_FOR_AGENTS = _encoded(HOP_BY_HOP | {"origin", AGENT_HEADER, PRIORITY_HEADER})
_NOT_FOR_AGENTS_WITH_BODY = _NOT_FOR_AGENTS | _encoded(_FRAMING)
_NOT_FROM_AGENTS = _encoded(NOT_FOR_CLIENTS | {AGENT_HEADER, ATTEMPTS_HEADER})
_COUNT, _COUNT_AND_NAME = _encoded((ATTEMPTS_HEADER,)), _encoded((AGENT_HEADER, ATTEMPTS_HEADER))
_AGENT, _ATTEMPTS = AGENT_HEADER.encode(), ATTEMPTS_HEADER.encode()


def has_control_characters(lines: Iterable[bytes]) -> bool:
    """Whether header fields, or their values, have bytes that RFC 9110 forbids, or that a terminal obeys."""
    for line in lines:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = line.decode("latin-1")
        if _FORBIDDEN.search(text):
            return True
    return False


def by_name(fields: Fields) -> dict[bytes, bytes]:
    """All header values by lower-case name; repeated ones are joined."""
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
    """The response head for the client, with the number of attempts and the names of the agents, if any.

    Unless the answer is the balancer's own, hop-by-hop headers and headers that affect the whole origin are removed.
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
    """An error response of a host, with the headers that a client may see."""
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
    """The request head for an agent, without hop-by-hop headers and the balancer's own.

    `content_length` is that of the body at hand; -1: none is needed; None: the body is streamed with the client's
    framing. `via` identifies this balancer, which detects loops. `credentials` are added unless a user has set a header
    of that name on the flow. `host` replaces the client's.
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
