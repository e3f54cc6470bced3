"""Combines the answers of several agents into one."""

from collections.abc import Iterable

from ..ollama.errors import error_body, is_object
from ..ollama.management import Combined
from ..ollama.routes import Dialect
from .headers import NOT_FOR_CLIENTS
from .messages import RETRY_AFTER, AgentRequest, Fields, Response, date, json_response

FRAMING = (b"content-length", b"transfer-encoding")


def streamed_head(request: AgentRequest, status: int, fields: Fields, *, merges: bool) -> Response:
    """The head of a streamed answer; `merges`: it carries lines from several agents."""
    if merges:
        fields = ((b"Content-Type", b"application/x-ndjson"), date())
    kept = _without_framing(fields)
    return _for_client(status, kept if request.http10 else [*kept, (b"Transfer-Encoding", b"chunked")], b"")


def combined(request: AgentRequest, answer: Combined) -> Response:
    """The combined answer of agents that answered without streaming."""
    reply, head = answer.reply, request.method == "HEAD"
    if reply is not None and (head or answer.status < 400 or is_object(reply.body)):
        fields = list(reply.headers)
        if request.http10:
            fields = [*_without_framing(fields), (b"Content-Length", b"%d" % len(reply.body))]
        return _for_client(answer.status, fields, reply.body)
    # What is no JSON is a page of a proxy, or what an older version says of a route that it does not have.
    message = f"{reply.agent}: status {reply.status}" if reply is not None else answer.message or ""
    body = error_body(Dialect.OLLAMA, answer.status, message)
    waits = [(b"Retry-After", RETRY_AFTER.encode())] if answer.status == 503 else []
    error = json_response(answer.status, body, *waits)
    return Response(error.status, error.fields, b"" if head else error.body)


def _for_client(status: int, fields: Iterable[tuple[bytes, bytes]], body: bytes) -> Response:
    kept = [(name, value) for name, value in fields if name.decode("latin-1").lower() not in NOT_FOR_CLIENTS]
    return Response(status, tuple(kept), body)


def _without_framing(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in fields if name.lower() not in FRAMING]
