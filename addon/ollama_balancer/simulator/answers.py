"""Complete answers as the server writes them: JSON, redirects and errors of each protocol."""

import html
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Protocol

JSON = "application/json; charset=utf-8"
BARE_JSON = "application/json"
PLAIN = "text/plain"
NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"
CRASHED = "an error was encountered while running the model: unexpected EOF"
BUSY = "server busy, please try again.  maximum pending requests exceeded"
FAILED = "a simulated failure"

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Answer:
    """A complete answer; Date and framing are the connection's. No `content_type`: no such header."""

    status: int
    content_type: str
    body: bytes
    headers: Headers = ()
    chunked: bool = False
    """Framed in chunks however short it is, as an answer that could have been a stream."""


class ErrorShape(Protocol):
    """How a protocol writes errors; `unread`: of a body that could not be read, which looks a little different."""

    def __call__(self, status: int, message: str, *, unread: bool = False) -> Answer: ...


def dumps(value: object, *, sort_keys: bool = False) -> bytes:
    """Compact JSON in UTF-8, non-ASCII as it is."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys)
    return text.encode(errors="replace")


def empty(status: int = 200) -> Answer:
    return Answer(status, "", b"")


def api_answer(value: object, status: int = 200) -> Answer:
    return Answer(status, JSON, dumps(value))


def v1_answer(value: object, status: int = 200) -> Answer:
    return Answer(status, BARE_JSON, dumps(value) + b"\n")


# ---- errors


def api_error(status: int, message: str, *, unread: bool = False) -> Answer:
    """An error of Ollama's own API."""
    return api_answer({"error": message}, status)


OPENAI_ERRORS = {400: "invalid_request_error", 404: "not_found_error"}
ANTHROPIC_ERRORS = OPENAI_ERRORS | {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def v1_error(status: int, message: str, *, unread: bool = False) -> Answer:
    """An error in OpenAI's shape."""
    kind = OPENAI_ERRORS.get(status, "api_error")
    value = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return api_answer(value, status) if unread else v1_answer(value, status)


def messages_error(status: int, message: str, *, unread: bool = False) -> Answer:
    """An error in Anthropic's shape."""
    error = {"type": ANTHROPIC_ERRORS.get(status, "api_error"), "message": message}
    value = {"type": "error", "error": error, "request_id": random_id("req")}
    return api_answer(value, status) if unread else v1_answer(value, status)


def error_of(path: str) -> ErrorShape:
    """How errors are written at a path."""
    if path == "/v1/messages":
        return messages_error
    return v1_error if path.startswith("/v1/") else api_error


def random_id(prefix: str) -> str:
    """An id as the server gives them to messages and requests: 24 hex digits."""
    return f"{prefix}_{random.randbytes(12).hex()}"


def not_found() -> Answer:
    return Answer(404, PLAIN, b"404 page not found")


def method_not_allowed(allowed: Iterable[str]) -> Answer:
    return Answer(405, PLAIN, b"405 method not allowed", (("Allow", ", ".join(allowed)),))


def redirect(status: int, method: str, location: str) -> Answer:
    """A redirect; only a GET is told in HTML too."""
    headers = (("Location", location),)
    if method not in ("GET", "HEAD"):
        return Answer(status, "", b"", headers)
    body = f'<a href="{html.escape(location)}">{HTTPStatus(status).phrase}</a>.\n\n' if method == "GET" else ""
    return Answer(status, "text/html; charset=utf-8", body.encode(), headers)


# ---- times


def timestamp(nanoseconds: int) -> str:
    """RFC 3339 in UTC, to the nanosecond."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    return f"{_second(seconds)}.{fraction:09d}Z"


_last_second = (0, "1970-01-01T00:00:00")


def _second(seconds: int) -> str:
    # A stream stamps each chunk: dividing up the date once a second keeps that cheap.
    global _last_second
    if _last_second[0] != seconds:
        _last_second = (seconds, datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    return _last_second[1]


def nanoseconds(seconds: float) -> int:
    """A duration as Ollama writes it; none is 0."""
    return max(1, round(seconds * 1e9))
