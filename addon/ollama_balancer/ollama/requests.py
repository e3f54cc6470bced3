"""What a request asks for, read as leniently as the Ollama server reads it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

from .routes import Kind, Route

_DECODER = json.JSONDecoder()


def requested_model(route: Route, path: str, body: bytes | None) -> str | None:
    """The model that a request names, as it spells it; None where there is none or the body is not readable.

    As in the server, keys count in any case, the last duplicate wins and what follows the first JSON value is ignored.
    """
    if route.kind is not Kind.MODEL:
        return None
    if route.path.endswith("{}"):
        return unquote(path[len(route.path) - 2 :])
    fields = _read_object(body or b"")
    model = _field(fields, "model")
    if not model and route.path == "/api/show":
        model = _field(fields, "name")
    return model if isinstance(model, str) and model else None


def _read_object(body: bytes) -> list[tuple[str, Any]]:
    try:
        text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
        value, _ = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return []
    return list(value.items()) if isinstance(value, dict) else []


def _field(fields: list[tuple[str, Any]], name: str) -> Any:
    found = None
    for key, value in fields:
        if key.lower() == name:
            found = value
    return found
