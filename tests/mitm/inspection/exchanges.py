"""The recorded exchanges of a real Ollama, as bodies."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).parents[2] / "recordings"


def exchange(name: str) -> tuple[str, bytes, str, bytes]:
    """Of a recording: the path, the request's body, the answer's type and body."""
    told: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text())
    response = told["response"]
    kinds = [value for key, value in response["headers"] if key.lower() == "content-type"]
    return told["request"]["path"], _bytes(told["request"].get("body")), kinds[0] if kinds else "", _answer(response)


def _answer(response: dict[str, Any]) -> bytes:
    if response.get("chunks"):
        return b"".join(_bytes(chunk) for chunk in response["chunks"])
    return _bytes(response.get("body"))


def _bytes(body: dict[str, Any] | None) -> bytes:
    if not body:
        return b""
    return base64.b64decode(body["base64"]) if "base64" in body else str(body.get("text", "")).encode()
