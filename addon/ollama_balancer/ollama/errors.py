"""Errors in the words and the protocol that a client of Ollama expects."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from .routes import Dialect

_OPENAI_TYPES = {400: "invalid_request_error", 404: "not_found_error", 413: "invalid_request_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}

_CRASHED = re.compile(rb"process has terminated|process no longer running|encountered while running the model")
"""How the server words that the runner of a model has died, where it answers with 500."""

_EMBEDDING_PATHS = ("/api/embed", "/api/embeddings", "/v1/embeddings")
_TAGGING_PATHS = ("/api/show", "/v1/models/{}")


def error_object(dialect: Dialect, status: int, message: str) -> dict[str, Any]:
    """The JSON object with which the server reports an error to a caller of that protocol."""
    match dialect:
        case Dialect.OPENAI | Dialect.RESPONSES:
            kind = _OPENAI_TYPES.get(status, "api_error")
            return {"error": {"message": message, "type": kind, "param": None, "code": None}}
        case Dialect.ANTHROPIC:
            kind = _ANTHROPIC_TYPES.get(status, "api_error")
            error = {"type": kind, "message": message}
            return {"type": "error", "error": error, "request_id": f"req_{secrets.token_hex(12)}"}
        case Dialect.OLLAMA:
            return {"error": message}


def error_body(dialect: Dialect, status: int, message: str) -> bytes:
    return _compact(error_object(dialect, status, message))


def error_event(dialect: Dialect, content_type: str, message: str) -> bytes:
    """An error as the last event of a stream that has begun; the caller sees to a line's end before it."""
    event = error_object(dialect, 502, message)
    if "event-stream" not in content_type:
        return _compact(event) + b"\n"
    if dialect is Dialect.RESPONSES:
        # The event of that API, and the `error` by which the client package knows that it has to raise.
        event = {"type": "error", "code": "server_error", "message": message, "param": None, **event}
    named = dialect in (Dialect.ANTHROPIC, Dialect.RESPONSES)
    return (b"event: error\n" if named else b"") + b"data: " + _compact(event) + b"\n\n"


def tells_of_crash(body: bytes) -> bool:
    """Whether a 500 with that body says that the host's runner has died: not the caller's fault."""
    return _CRASHED.search(body) is not None


def model_not_found(model: str, path: str) -> str:
    """What the server says on that route of a model that it does not have."""
    if path in _EMBEDDING_PATHS:
        return f'model "{model}" not found, try pulling it first'
    if path in _TAGGING_PATHS and ":" not in model.rsplit("/", 1)[-1]:
        model += ":latest"
    return f"model '{model}' not found"


def _compact(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
