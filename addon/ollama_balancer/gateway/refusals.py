"""What agents answered that did not serve: whose fault it is, and what the client is told of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from mitmproxy import http

from ..mitm.answers import dated, path_of
from ..mitm.headers import header
from ..ollama.errors import Blame, classify, error_body, is_object, not_let_in
from ..ollama.routes import Route, dialect_of
from ..ollama.unpacking import UnpackingError, unpacker_for
from .context import Attempt
from .router import JSON_TYPE, RETRY_AFTER

BUSY_SECONDS = 1.0
"""For which an agent that is busy is left alone, where it does not say for how long."""

MOST_BUSY_SECONDS = 60.0
"""For which it is left alone at most, whatever it says."""

MAX_UNPACKED = 64 * 1024

_USEFUL = (
    Blame.CANNOT_LOAD,
    Blame.HOST_BUSY,
    Blame.HOST_CANNOT,
    Blame.HOST_REFUSES,
    Blame.LACKS_ROUTE,
    Blame.LACKS_MODEL,
)
"""What tells the caller most comes first."""

_UNREADABLE = b'{"error":"it is compressed"}'
_BODY_HEADERS = frozenset({"content-type", "content-length", "content-encoding", "transfer-encoding"})


def blame_of(refusal: http.Response, body: bytes, route: Route | None) -> Blame:
    """Whom the answer blames. `body` is what has come of its body."""
    asks_to_retry = header(refusal.headers, b"retry-after") is not None
    return classify(refusal.status_code, _unpacked(refusal, body), route, asks_to_retry=asks_to_retry)


def why_refused(blame: Blame, status: int, path: str) -> str:
    """In a few words, for the log and the caller."""
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


def retry_after(refusal: http.Response | None) -> float:
    """For how many seconds an agent that is busy wants to be left alone, bounded."""
    value = header(refusal.headers, b"retry-after") if refusal is not None else None
    if value is None:
        return BUSY_SECONDS
    value = value.strip()
    try:
        seconds = float(int(value)) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return BUSY_SECONDS
    return max(0.0, min(seconds, MOST_BUSY_SECONDS))


def most_useful(failures: Sequence[Attempt]) -> Attempt | None:
    """The attempt whose answer tells the caller most; None where none tells as much as the list of what was tried."""
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


def answer_to(flow: http.HTTPFlow, attempt: Attempt, message: str) -> http.Response:
    """The agent's answer, as it came or, where it is not in the caller's protocol, an error with that message."""
    refusal = attempt.refusal
    assert refusal
    body = refusal.raw_content or b""
    if flow.request.method == "HEAD" or is_object(_unpacked(refusal, body)):
        response = refusal.copy()
        response.headers.pop("transfer-encoding", None)
        if flow.request.method != "HEAD":
            response.headers["content-length"] = str(len(body))
    else:
        status = 404 if attempt.kind is Blame.LACKS_ROUTE else refusal.status_code
        response = _error(flow, status if status >= 400 else 502, message)
        if (wait := header(refusal.headers, b"retry-after")) is not None:
            response.headers["Retry-After"] = wait
    if attempt.kind is Blame.HOST_BUSY and "retry-after" not in response.headers:
        response.headers["Retry-After"] = RETRY_AFTER
    return response


def for_caller(flow: http.HTTPFlow, response: http.Response, body: bytes) -> http.Response | None:
    """An answer that is the caller's fault, in the caller's protocol; None: it is already."""
    if flow.request.method == "HEAD" or is_object(_unpacked(response, body), whole=False):
        return None
    status = response.status_code
    error = _error(flow, status, f"{status} {_phrase(status)}")
    kept = [(name, value) for name, value in response.headers.items(multi=True) if name.lower() not in _BODY_HEADERS]
    error.headers = http.Headers([(n.encode(), v.encode("utf-8", "surrogateescape")) for n, v in kept])
    error.headers["Content-Type"] = JSON_TYPE
    error.headers["Content-Length"] = str(len(error.raw_content or b""))
    return error


def _rank(failure: Attempt) -> int:
    return _USEFUL.index(failure.kind) if failure.kind in _USEFUL else len(_USEFUL)


def _error(flow: http.HTTPFlow, status: int, message: str) -> http.Response:
    body = error_body(dialect_of(path_of(flow)), status, message)
    return http.Response.make(status, body, dated({"Content-Type": JSON_TYPE}))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "error"


def _unpacked(response: http.Response, body: bytes) -> bytes:
    """The beginning of a body whose head that is."""
    encoding = header(response.headers, b"content-encoding")
    if encoding is None or not body:
        return body
    unpacker = unpacker_for(encoding)
    try:
        text = unpacker.feed(body, MAX_UNPACKED) if unpacker is not None else b""
    except UnpackingError:
        text = b""
    return text or _UNREADABLE
