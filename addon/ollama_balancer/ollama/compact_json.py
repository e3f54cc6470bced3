"""JSON as Ollama writes it: without blanks."""

from __future__ import annotations

import json


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
