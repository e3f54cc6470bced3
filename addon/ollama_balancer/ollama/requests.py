"""What a request asks for, read as leniently as the Ollama server reads it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

from .routes import Kind, Route


class _Fields(list[tuple[str, Any]]):
    """An object's fields in the order in which they were written, duplicates included."""


_DECODER = json.JSONDecoder(object_pairs_hook=_Fields)


def requested_model(route: Route, path: str, body: bytes | None) -> str | None:
    """The model that a request names, as it spells it; None where there is none or the body is not readable.

    As in the server, keys count in any case, the last duplicate that is not null wins and what follows the first JSON
    value is ignored.
    """
    if route.kind is not Kind.MODEL:
        return None
    if route.path.endswith("{}"):
        return _well_formed(unquote(path[len(route.path) - 2 :]))
    fields = _read_object(body or b"")
    model = _field(fields, "model")
    if not model and route.path == "/api/show":
        model = _field(fields, "name")
    return _well_formed(model) if isinstance(model, str) and model else None


def _well_formed(text: str) -> str:
    """JSON can name half a character; logs and files cannot hold one."""
    return text.encode("utf-8", "replace").decode()


def _read_object(body: bytes) -> _Fields:
    try:
        text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
        value, _ = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return _Fields()
    return value if isinstance(value, _Fields) else _Fields()


def _field(fields: _Fields, name: str) -> Any:
    found = None
    for key, value in fields:
        if value is not None and key.lower() == name:
            found = value
    return found
