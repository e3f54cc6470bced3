"""JSON as Ollama writes it: without blanks."""

import json


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
