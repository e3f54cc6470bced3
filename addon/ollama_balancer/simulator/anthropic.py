"""Anthropic's `/v1/messages`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .answers import EVENTS, Answer, random_id, v1_answer
from .shapes import Piece, Statistics, ToolCall, calls_of, server_event, text_of

STOP_REASONS = {"length": "max_tokens", "stop": "end_turn", "load": "end_turn"}


@dataclass
class MessagesShape:
    """Named server-sent events of one content block. `prompt_count` (tokens) is the guess that opens a stream."""

    model: str
    prompt_count: int
    stream_type: str = EVENTS
    _called: bool = False
    _id: str = field(default_factory=lambda: random_id("msg"))

    def opening(self, first: Piece) -> tuple[bytes, ...]:
        self._called = isinstance(first, ToolCall)
        message = self._message([]) | {"usage": {"input_tokens": self.prompt_count, "output_tokens": 0}}
        block: dict[str, Any] = {"type": "text", "text": ""}
        if isinstance(first, ToolCall):
            block = _tool_use(first) | {"input": {}}
        return (
            server_event({"type": "message_start", "message": message}),
            server_event({"type": "content_block_start", "index": 0, "content_block": block}),
        )

    def piece(self, piece: Piece) -> bytes:
        delta = {"type": "text_delta", "text": piece}
        if isinstance(piece, ToolCall):
            delta = {"type": "input_json_delta", "partial_json": piece.json}
        return server_event({"type": "content_block_delta", "index": 0, "delta": delta})

    def end(self, statistics: Statistics) -> tuple[bytes, ...]:
        delta = {"stop_reason": _reason(statistics, called=self._called)}
        return (
            server_event({"type": "content_block_stop", "index": 0}),
            server_event({"type": "message_delta", "delta": delta, "usage": _usage(statistics)}),
            server_event({"type": "message_stop"}),
        )

    def crash(self) -> bytes:
        return b""

    def whole(self, pieces: Sequence[Piece], statistics: Statistics) -> Answer:
        calls = calls_of(pieces)
        content = [_tool_use(call) for call in calls] or [{"type": "text", "text": text_of(pieces)}]
        rest = {"stop_reason": _reason(statistics, called=bool(calls)), "usage": _usage(statistics)}
        return v1_answer(self._message(content) | rest)

    def done(self, reason: str) -> Answer:
        return self.whole([], Statistics(reason))

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self.model, "content": content}


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}


def _reason(statistics: Statistics, *, called: bool) -> str:
    return "tool_use" if called else STOP_REASONS.get(statistics.done_reason, "end_turn")


def _usage(statistics: Statistics) -> dict[str, int]:
    return {"input_tokens": statistics.prompt_count, "output_tokens": statistics.output_count}
