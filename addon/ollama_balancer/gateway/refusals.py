"""Error responses of agents: who is to blame, and what the client gets."""

import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from ..ollama.decompression import DecompressionError, decompressor_for
from ..ollama.errors import Blame, classify, error_body, is_object, not_let_in
from ..ollama.routes import Dialect, Route
from .attempts import FailedAttempt
from .messages import RETRY_AFTER, Response, json_response

BUSY_SECONDS = 1.0
"""Seconds for which a busy agent is avoided if it names no time."""

MAX_BUSY_SECONDS = 60.0
"""The most seconds for which it is avoided, whatever it says."""

MAX_DECOMPRESSED = 64 * 1024

_USEFUL = (
    Blame.CANNOT_LOAD,
    Blame.HOST_BUSY,
    Blame.HOST_CANNOT,
    Blame.HOST_REFUSES,
    Blame.LACKS_ROUTE,
    Blame.LACKS_MODEL,
)
"""The most informative failure first."""

_UNREADABLE = b'{"error":"it is compressed"}'
_OF_BODY = frozenset({b"content-type", b"content-length", b"content-encoding", b"transfer-encoding", b"date"})


def blame_of(refusal: Response, route: Route | None) -> Blame:
    """Who is to blame. The body may be only its beginning."""
    asks_to_retry = refusal.header(b"retry-after") is not None
    return classify(refusal.status, _decompressed(refusal), route, asks_to_retry=asks_to_retry)


def why_refused(blame: Blame, status: int, path: str) -> str:
    """The reason for the log and the caller."""
    match blame:
        case Blame.LACKS_MODEL:
            return "does not have the model"
        case Blame.LACKS_ROUTE:
            return f"does not have {path} (status {status})"
        case Blame.CANNOT_LOAD:
            return f"cannot run the model (status {status})"
        case Blame.HOST_BUSY:
            return f"is busy (status {status})"
        case Blame.HOST_REFUSES:
            return not_let_in(status)
        case _:
            return f"status {status}"


def retry_after(refusal: Response | None) -> float:
    """Seconds for which a busy agent wants to be avoided, bounded."""
    value = refusal.header(b"retry-after") if refusal is not None else None
    if value is None:
        return BUSY_SECONDS
    value = value.strip()
    try:
        seconds = float(int(value)) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return BUSY_SECONDS
    return max(0.0, min(seconds, MAX_BUSY_SECONDS))


def most_useful(failures: Sequence[FailedAttempt]) -> FailedAttempt | None:
    """The attempt with the most informative answer; None if the list of attempts says more."""
    answered = [failure for failure in failures if failure.refusal is not None]
    if len(answered) < len(failures):
        # That some lack the model is not why nobody serves.
        answered = [failure for failure in answered if _rank(failure) <= _USEFUL.index(Blame.HOST_CANNOT)]
    # Of those that are busy, who is free first; else the last.
    return min(
        reversed(answered),
        key=lambda failure: (
            _rank(failure),
            retry_after(failure.refusal) if failure.kind is Blame.HOST_BUSY else 0.0,
        ),
        default=None,
    )


def answer_to(attempt: FailedAttempt, message: str, dialect: Dialect, *, head: bool = False) -> Response:
    """The agent's own error, or `message` in the caller's protocol if it has another format.

    `head`: the request was a HEAD.
    """
    refusal = attempt.refusal
    assert refusal
    if head or is_object(_decompressed(refusal)):
        fields = [field for field in refusal.fields if field[0].lower() != b"transfer-encoding"]
        if not head:
            fields = [field for field in fields if field[0].lower() != b"content-length"]
            fields.append((b"Content-Length", b"%d" % len(refusal.body)))
        response = Response(refusal.status, tuple(fields), refusal.body)
    else:
        status = 404 if attempt.kind is Blame.LACKS_ROUTE else refusal.status
        status = status if status >= 400 else 502
        waits = [field for field in refusal.fields if field[0].lower() == b"retry-after"]
        response = json_response(status, error_body(dialect, status, message), *waits)
    if attempt.kind is Blame.HOST_BUSY and response.header(b"retry-after") is None:
        response = Response(response.status, (*response.fields, (b"Retry-After", RETRY_AFTER.encode())), response.body)
    return response


def for_caller(response: Response, dialect: Dialect, *, head: bool = False) -> Response | None:
    """An error that is the caller's fault, in the caller's protocol; None if it already is."""
    if head or is_object(_decompressed(response), whole=False):
        return None
    status = response.status
    error = json_response(status, error_body(dialect, status, f"{status} {_phrase(status)}"))
    kept = [field for field in response.fields if field[0].lower() not in _OF_BODY]
    return Response(status, (*kept, *error.fields), error.body)


def _rank(failure: FailedAttempt) -> int:
    return _USEFUL.index(failure.kind) if failure.kind in _USEFUL else len(_USEFUL)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "error"


def _decompressed(response: Response) -> bytes:
    """The decompressed body, as far as it has arrived."""
    encoding = response.header(b"content-encoding")
    if encoding is None or not response.body:
        return response.body
    decompressor = decompressor_for(encoding)
    try:
        text = decompressor.feed(response.body, MAX_DECOMPRESSED) if decompressor is not None else b""
    except DecompressionError:
        text = b""
    return text or _UNREADABLE
