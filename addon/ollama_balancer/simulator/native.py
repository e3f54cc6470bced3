"""Ollama's own `/api/generate`, `/api/chat`, `/api/embed` and `/api/embeddings`."""

import time
from collections.abc import Sequence
from typing import Any

from .answers import CRASHED, JSON, NDJSON, Answer, api_answer, dumps, nanoseconds, timestamp
from .shapes import EmbeddingResult, Piece, Statistics, ToolCall, calls_of, text_of


class OllamaShape:
    """Newline-delimited JSON."""

    stream_type = NDJSON

    def __init__(self, spelling: str, *, chat: bool) -> None:
        self._chat = chat
        self._before = b'{"model":' + dumps(spelling) + b',"created_at":"'
        self._between = b'","message":{"role":"assistant","content":"' if chat else b'","response":"'
        self._after = b'"},"done":false}\n' if chat else b'","done":false}\n'

    def opening(self, first: Piece) -> tuple[bytes, ...]:
        return ()

    def piece(self, piece: Piece) -> bytes:
        if isinstance(piece, ToolCall):
            return self._document([piece], {"done": False}) + b"\n"
        # Pseudo-words hold nothing that JSON would escape.
        stamp = timestamp(time.time_ns()).encode()
        return b"".join((self._before, stamp, self._between, piece.encode(), self._after))

    def end(self, statistics: Statistics) -> tuple[bytes, ...]:
        return (self._last([], statistics) + b"\n",)

    def crash(self) -> bytes:
        return dumps({"error": CRASHED}) + b"\n"

    def whole(self, pieces: Sequence[Piece], statistics: Statistics) -> Answer:
        return Answer(200, JSON, self._last(pieces, statistics))

    def done(self, reason: str) -> Answer:
        return Answer(200, JSON, self._document([], {"done": True, "done_reason": reason}))

    def _last(self, pieces: Sequence[Piece], statistics: Statistics) -> bytes:
        rest: dict[str, Any] = {"done": True, "done_reason": statistics.done_reason}
        if not self._chat:
            # The real one holds every token of the conversation; what reads it here only passes it on.
            rest["context"] = list(range(259, 259 + min(64, statistics.prompt_count + statistics.output_count)))
        return self._document(pieces, rest | statistics.fields())

    def _document(self, pieces: Sequence[Piece], rest: dict[str, Any]) -> bytes:
        value: dict[str, Any] = {"response": text_of(pieces)}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": text_of(pieces)}
            if calls := calls_of(pieces):
                message["tool_calls"] = [
                    {"id": call.id, "function": {"index": i, "name": call.name, "arguments": call.arguments}}
                    for i, call in enumerate(calls)
                ]
            value = {"message": message}
        return self._before + timestamp(time.time_ns()).encode() + b'",' + dumps(value | rest)[1:]


def embed(embedded: EmbeddingResult) -> Answer:
    """/api/embed."""
    value: dict[str, Any] = {"model": embedded.spelling, "embeddings": embedded.vectors}
    if embedded.vectors:
        value |= {
            "total_duration": nanoseconds(embedded.total),
            "load_duration": nanoseconds(embedded.load),
            "prompt_eval_count": embedded.count,
        }
    return api_answer(value)


def embedding(embedded: EmbeddingResult) -> Answer:
    """/api/embeddings, the older one: of one text, and without figures."""
    return api_answer({"embedding": embedded.vectors[0] if embedded.vectors else []})
