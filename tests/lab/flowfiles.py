"""Flows as a balancer leaves them, and files of them, for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mitmproxy import http
from mitmproxy.io import FlowWriter
from mitmproxy.test import tflow

NOON = 1_770_000_000.0
"""Seconds since the epoch."""


def record(**fields: Any) -> dict[str, Any]:
    """The record of a request that agent `a` served in two seconds."""
    return {
        "agent": "a",
        "mode": "metrics",
        "model": "m",
        "options": [],
        "room": {"slots": None, "fits": None, "loaded": 0},
        "pinned": False,
        "attempts": 1,
        "waited_ms": 0.0,
        "failures": [],
        "outcome": "succeeded",
        "problem": None,
        "first_byte_ms": 1000.0,
        "total_ms": 2000.0,
    } | fields


def final(prompt: int = 100, output: int = 50, *, load: float = 0.01, read: float = 1.0, answer: float = 1.0) -> Any:
    """The last event of an answer of Ollama's own API. Tokens and seconds."""
    return {
        "model": "m",
        "done": True,
        "response": "",
        "prompt_eval_count": prompt,
        "prompt_eval_duration": round(read * 1e9),
        "eval_count": output,
        "eval_duration": round(answer * 1e9),
        "load_duration": round(load * 1e9),
        "total_duration": round((load + read + answer) * 1e9),
    }


def flow(
    at: float = 0.0,
    body: Any = None,
    answer: Sequence[Any] | bytes | None = None,
    metadata: Any = None,
    *,
    path: str = "/api/generate",
    status: int = 200,
    kind: str = "application/x-ndjson",
    client: str = "",
) -> http.HTTPFlow:
    """A request that came so many seconds after noon; `answer` is the lines of its stream, or the whole body."""
    headers = http.Headers([(b"content-type", b"application/json")])
    sent = {"model": "m", "prompt": "why?"} if body is None else body
    request = http.Request.make("POST", f"http://10.0.0.1:11434{path}", json.dumps(sent), headers)
    request.timestamp_start = request.timestamp_end = NOON + at
    lines = [final()] if answer is None else answer
    content = lines if isinstance(lines, bytes) else b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    result = tflow.tflow(req=request, resp=http.Response.make(status, content, {"content-type": kind}))
    result.metadata["balancer"] = record(**({"client": client} if client else {})) if metadata is None else metadata
    return result


def write(path: Path, flows: Iterable[http.HTTPFlow]) -> Path:
    with path.open("wb") as file:
        writer = FlowWriter(file)
        for each in flows:
            writer.add(each)
    return path
