"""Routing decisions as data; the adapter carries them out."""

import html
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.agent import Agent
from ..core.tickets import QueueKey
from ..ollama.errors import error_body
from ..ollama.management import NONE_UNAVAILABLE, Unavailable
from ..ollama.routes import Dialect
from .messages import JSON_TYPE, RETRY_AFTER, Response, date

TEXT_TYPE = "text/plain; charset=utf-8"
HTML_TYPE = "text/html; charset=utf-8"


@dataclass(frozen=True)
class Forward:
    """Send the request to this agent; the context already holds the lease."""

    agent: Agent


@dataclass(frozen=True)
class Broadcast:
    """Send the request to all these agents and combine their answers. No lease has been acquired yet."""

    agents: tuple[Agent, ...]
    require_all: bool = False
    """Answer 404 if any agent lacks the object, not only if all do."""
    unavailable: Unavailable = NONE_UNAVAILABLE
    """Agents that have the model but cannot be asked."""


@dataclass(frozen=True)
class Wait:
    """All eligible agents are busy: the request waits in the queue."""

    queue_key: QueueKey


@dataclass(frozen=True)
class Answer:
    """The balancer's own answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = field(default=JSON_TYPE.decode(), kw_only=True)
    problem: str | None = field(default=None, kw_only=True)
    """The error for the log and the comment of the flow; None if there is none."""

    def response(self, *, head: bool = False) -> Response:
        """`head`: the request is a HEAD."""
        fields = [(b"Content-Type", self.content_type.encode())] if self.content_type else []
        fields += [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in self.headers.items()]
        fields += [date(), (b"Content-Length", b"%d" % len(self.body))]
        return Response(self.status, tuple(fields), b"" if head else self.body)


def error(dialect: Dialect, status: int, message: str) -> Answer:
    """An error of the balancer's own, in the caller's protocol."""
    headers = {"Retry-After": RETRY_AFTER} if status == 503 else {}
    return Answer(status, error_body(dialect, status, message), headers, problem=message)


def redirected(method: str, status: int, location: str) -> Answer:
    """The server's redirect; only GET has a body, and HEAD its head."""
    words = {301: "Moved Permanently", 307: "Temporary Redirect"}[status]
    body = f'<a href="{html.escape(location)}">{words}</a>.\n\n'.encode()
    if method in ("GET", "HEAD"):
        return Answer(status, body, {"Location": location}, content_type=HTML_TYPE)
    return Answer(status, b"", {"Location": location}, content_type="")
