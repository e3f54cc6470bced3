"""OpenAI's `/v1/chat/completions`, `/v1/completions` and `/v1/embeddings`."""

import base64
import random
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .answers import EVENTS, Answer, dumps, v1_answer
from .shapes import EmbeddingResult, Piece, Statistics, calls_of, text_of

DONE = b"data: [DONE]\n\n"


@dataclass
class _EventsShape:
    """What chats and completions share: unnamed server-sent events of one `choice` each."""

    model: str
    include_usage: bool = False
    stream_type: str = EVENTS
    _first: bool = True
    _called: bool = False
    _number: int = field(default_factory=lambda: random.randrange(1000))
    _created: int = field(default_factory=lambda: int(time.time()))

    id_prefix = ""
    whole_object = ""
    chunk_object = ""

    def __post_init__(self) -> None:
        before, after = self._event([self._part(["@"])]).split(b"@")
        self._before, self._after = before, after

    def opening(self, first: Piece) -> tuple[bytes, ...]:
        return ()

    def piece(self, piece: Piece) -> bytes:
        if isinstance(piece, str) and not self._first:
            return self._before + piece.encode() + self._after
        first, self._first = self._first, False
        self._called = self._called or not isinstance(piece, str)
        return self._event([self._part([piece], first=first)])

    def end(self, statistics: Statistics) -> tuple[bytes, ...]:
        reason = self._reason(statistics, called=self._called)
        last = self._event([self._last(reason)])
        usage = self._event([], usage=usage_of(statistics)) if self.include_usage else b""
        return (last + usage + DONE,)

    def crash(self) -> bytes:
        # An empty part of no model, and no [DONE]: all that tells a client of a crash here.
        return self._event([self._part([""])], model="")

    def whole(self, pieces: Sequence[Piece], statistics: Statistics) -> Answer:
        choice = self._choice(pieces, self._reason(statistics, called=bool(calls_of(pieces))))
        head = self._head(self.whole_object, self.model)
        return v1_answer(head | {"choices": [choice], "usage": usage_of(statistics)})

    def done(self, reason: str) -> Answer:
        return self.whole([], Statistics(reason))

    def _event(self, choices: list[dict[str, Any]], *, model: str | None = None, **more: Any) -> bytes:
        head = self._head(self.chunk_object, self.model if model is None else model)
        return b"data: " + dumps(head | {"choices": choices} | more) + b"\n\n"

    def _head(self, kind: str, model: str) -> dict[str, Any]:
        return {
            "id": f"{self.id_prefix}-{self._number}",
            "object": kind,
            "created": self._created,
            "model": model,
            "system_fingerprint": "fp_ollama",
        }

    @staticmethod
    def _reason(statistics: Statistics, *, called: bool) -> str:
        return "tool_calls" if called else statistics.done_reason

    def _part(self, pieces: Sequence[Piece], *, first: bool = False) -> dict[str, Any]:
        raise NotImplementedError

    def _last(self, reason: str) -> dict[str, Any]:
        raise NotImplementedError

    def _choice(self, pieces: Sequence[Piece], reason: str) -> dict[str, Any]:
        raise NotImplementedError


class ChatShape(_EventsShape):
    """`/v1/chat/completions`."""

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _part(self, pieces: Sequence[Piece], *, first: bool = False) -> dict[str, Any]:
        delta = _message(pieces)
        if not first and not calls_of(pieces):
            del delta["role"]
        return {"index": 0, "delta": delta, "finish_reason": None}

    def _last(self, reason: str) -> dict[str, Any]:
        return {"index": 0, "delta": {}, "finish_reason": reason}

    def _choice(self, pieces: Sequence[Piece], reason: str) -> dict[str, Any]:
        return {"index": 0, "message": _message(pieces), "finish_reason": reason}


class CompletionShape(_EventsShape):
    """`/v1/completions`."""

    id_prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def _part(self, pieces: Sequence[Piece], *, first: bool = False) -> dict[str, Any]:
        return {"text": text_of(pieces), "index": 0, "finish_reason": None}

    def _last(self, reason: str) -> dict[str, Any]:
        return self._choice([], reason)

    def _choice(self, pieces: Sequence[Piece], reason: str) -> dict[str, Any]:
        return {"text": text_of(pieces), "index": 0, "finish_reason": reason}


def usage_of(statistics: Statistics) -> dict[str, int]:
    """Counts of tokens in OpenAI's words."""
    return {
        "prompt_tokens": statistics.prompt_count,
        "completion_tokens": statistics.output_count,
        "total_tokens": statistics.prompt_count + statistics.output_count,
    }


def _message(pieces: Sequence[Piece]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text_of(pieces)}
    if calls := calls_of(pieces):
        message["tool_calls"] = [
            {
                "id": call.id,
                "index": i,
                "type": "function",
                "function": {"name": call.name, "arguments": call.json},
            }
            for i, call in enumerate(calls)
        ]
    return message


def embeddings(embedded: EmbeddingResult, *, encoded: bool = False) -> Answer:
    """`/v1/embeddings`; `encoded`: the vectors as base64 of 32-bit floats, which OpenAI's own client asks for."""
    data = [
        {"object": "embedding", "embedding": _encoded(vector) if encoded else vector, "index": i}
        for i, vector in enumerate(embedded.vectors)
    ]
    usage = {"prompt_tokens": embedded.count, "total_tokens": embedded.count}
    return v1_answer({"object": "list", "data": data, "model": embedded.spelling, "usage": usage})


def _encoded(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
