"""A flow that went through the balancer as a record of plain fields: a line of `ollama-balancer export --jsonl`."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from mitmproxy import http
from pydantic_core import from_json

from ..ollama.answer_watcher import AnswerWatcher
from ..ollama.answers import Answer
from ..ollama.decompression import DecompressionError, decompress
from ..ollama.events import event_parser
from ..ollama.truncation import split_gap
from ..text import rfc3339
from .reading import METADATA_KEY

MAX_UNPACKED = 64 * 1024 * 1024
"""Bytes into which a compressed body may be unpacked."""

MESSAGES = frozenset(("system", "instructions", "prompt", "images", "messages", "input"))
"""The members of a request that are its messages; the others are its parameters."""

type Json = dict[str, Any]


def balancers_record(flow: http.HTTPFlow) -> Mapping[str, Any] | None:
    """What the balancer has noted of the flow; None if it did not go through it."""
    record = flow.metadata.get(METADATA_KEY)
    return record if isinstance(record, dict) else None


def unpack(message: http.Message | None) -> None:
    """Have the message hold its plain body, as far as it can be unpacked within bounds: mitmproxy has none."""
    encoding = message.headers.get("content-encoding") if message is not None else None
    if message is not None and encoding is not None:
        del message.headers["content-encoding"]
        if encoding.strip().lower() not in ("", "identity"):
            with contextlib.suppress(DecompressionError):
                message.raw_content = decompress(message.raw_content or b"", encoding, MAX_UNPACKED)


def jsonl_record(flow: http.HTTPFlow, record: Mapping[str, Any]) -> Json:
    """The fields as docs/inspection.md has them. Bodies are unpacked already."""
    request, response = flow.request, flow.response
    body = _object(request.raw_content or b"")
    kind = response.headers.get("content-type", "").lower() if response is not None else ""
    answer, left_out, error = _read_answer((response.raw_content if response is not None else None) or b"", kind)
    return {
        "time": _time(request.timestamp_start),
        **{key: _text(record.get(key)) for key in ("request_id", "key", "client")},
        "path": request.path.partition("?")[0],
        **{key: _text(record.get(key)) for key in ("model", "agent", "mode", "why")},
        "attempts": _number(record.get("attempts")),
        "failures": _failures(record.get("failures")),
        "status": response.status_code if response is not None else None,
        "outcome": _text(record.get("outcome")),
        "problem": _text(record.get("problem")) or error,
        "messages": list(_messages(body)),
        "parameters": {key: value for key, value in body.items() if key not in MESSAGES},
        "answer": answer.text,
        "thinking": answer.thinking,
        "tool_calls": [
            {"id": call.id or None, "name": call.name, "arguments": _arguments(call.arguments)}
            for call in answer.tool_calls
        ],
        "bytes_left_out": left_out,
        "prompt_tokens": answer.timings.prompt_eval_count,
        "output_tokens": answer.timings.eval_count,
        "tokens_per_second": _number(record.get("tokens_per_second")),
        "queue_seconds": _seconds(record.get("waited_ms")),
        "ttft_seconds": _seconds(record.get("first_byte_ms")),
        "load_seconds": answer.timings.load_duration,
        "total_seconds": _seconds(record.get("total_ms")),
    }


def _messages(body: Json) -> Iterator[Json]:
    """The conversation, the messages of a chat as they were sent."""
    for key in ("system", "instructions"):
        if body.get(key):
            yield {"role": "system", "content": body[key]}
    prompt = body.get("prompt")
    for text in prompt if isinstance(prompt, list) else [prompt] if prompt is not None else []:
        images = {"images": body["images"]} if body.get("images") else {}
        yield {"role": "user", "content": text, **images}
    for key in ("messages", "input"):
        value = body.get(key)
        for each in value if isinstance(value, list) else [value] if value is not None else []:
            yield each if isinstance(each, dict) else {"role": "user", "content": each}


def _read_answer(body: bytes, kind: str) -> tuple[Answer, int, str | None]:
    """What the answer says, how many bytes of its middle are not stored, and what is wrong with it."""
    cut = split_gap(body) if event_parser(kind) is not None else None
    head, left_out, tail = cut if cut is not None else (body, 0, b"")
    watcher = AnswerWatcher(kind, keep=len(head))
    watcher.feed(head)
    if cut is None:
        return watcher.answer, 0, watcher.verdict().error
    # The answer goes on with the first event that is whole again.
    end = b"\n\n" if "event-stream" in kind else b"\n"
    watcher.feed(b"\n\n" + tail.partition(end)[2])
    return watcher.answer, left_out, watcher.answer.error or watcher.verdict().error


def _object(body: bytes) -> Json:
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _arguments(text: str) -> Any:
    """As JSON, or as text where they broke off."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return text


def _failures(value: object) -> list[Json]:
    failures = [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
    return [{key: _text(each.get(key)) for key in ("agent", "reason")} for each in failures]


def _text(value: object) -> str | None:
    return str(value) if isinstance(value, str) else None


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None  # type: ignore[return-value]


def _seconds(milliseconds: object) -> float | None:
    number = _number(milliseconds)
    return None if number is None else round(number / 1000, 6)


def _time(seconds: object) -> str | None:
    number = _number(seconds)
    return rfc3339(number) if number is not None and 0 <= number < 1e11 else None
