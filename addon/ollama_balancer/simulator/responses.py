"""OpenAI's `/v1/responses`."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .answers import EVENTS, Answer, v1_answer
from .requests import as_sent
from .shapes import Piece, Statistics, ToolCall, calls_of, server_event, text_of


def _number() -> int:
    return random.randrange(1_000_000)


@dataclass
class ResponsesShape:
    """Named and numbered server-sent events of one output item. `echo` are the request's fields that come back."""

    model: str
    echo: dict[str, Any]
    stream_type: str = EVENTS
    _id: str = field(default_factory=lambda: f"resp_{_number()}")
    _message_id: str = field(default_factory=lambda: f"msg_{_number()}")
    _call_id: str = field(default_factory=lambda: f"fc_{_number()}_0")
    _created: int = field(default_factory=lambda: int(time.time()))
    _sent: list[Piece] = field(default_factory=list)
    _events: int = 0

    def opening(self, first: Piece) -> tuple[bytes, ...]:
        beginning = self._response("in_progress", [])
        events = [
            self._event("response.created", response=beginning),
            self._event("response.in_progress", response=beginning),
        ]
        if isinstance(first, ToolCall):
            item = self._call(first) | {"status": "in_progress", "arguments": ""}
            return (*events, self._event("response.output_item.added", item=item, output_index=0))
        item = self._message("") | {"status": "in_progress", "content": []}
        return (
            *events,
            self._event("response.output_item.added", item=item, output_index=0),
            self._event("response.content_part.added", part=_part(""), **self._position()),
        )

    def piece(self, piece: Piece) -> bytes:
        self._sent.append(piece)
        if isinstance(piece, ToolCall):
            return self._event(
                "response.function_call_arguments.delta", delta=piece.json, item_id=self._call_id, output_index=0
            )
        return self._event("response.output_text.delta", delta=piece, logprobs=[], **self._position())

    def end(self, statistics: Statistics) -> tuple[bytes, ...]:
        [item] = self._output(self._sent)
        events = []
        if calls := calls_of(self._sent):
            events += [
                self._event(
                    "response.function_call_arguments.done",
                    arguments=calls[0].json,
                    item_id=self._call_id,
                    output_index=0,
                )
            ]
        else:
            text = text_of(self._sent)
            events += [
                self._event("response.output_text.done", text=text, logprobs=[], **self._position()),
                self._event("response.content_part.done", part=_part(text), **self._position()),
            ]
        completed = self._response("completed", [item], statistics)
        return (
            *events,
            self._event("response.output_item.done", item=item, output_index=0),
            self._event("response.completed", response=completed),
        )

    def crash(self) -> bytes:
        return b""

    def whole(self, pieces: Sequence[Piece], statistics: Statistics) -> Answer:
        return v1_answer(self._response("completed", self._output(pieces), statistics))

    def done(self, reason: str) -> Answer:
        return self.whole([], Statistics(reason))

    def _event(self, kind: str, **fields: Any) -> bytes:
        value = fields | {"sequence_number": self._events, "type": kind}
        self._events += 1
        return server_event(value, sort_keys=True)

    def _position(self) -> dict[str, Any]:
        return {"content_index": 0, "item_id": self._message_id, "output_index": 0}

    def _message(self, text: str) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [_part(text)],
        }

    def _call(self, call: ToolCall) -> dict[str, Any]:
        return {
            "id": self._call_id,
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.json,
        }

    def _output(self, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        return [self._call(call) for call in calls_of(pieces)] or [self._message(text_of(pieces))]

    def _response(
        self, status: str, output: list[dict[str, Any]], statistics: Statistics | None = None
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if statistics else None,
            "status": status,
            "incomplete_details": None,
            "model": self.model,
            "previous_response_id": None,
            "instructions": self.echo.get("instructions"),
            "output": output,
            "error": None,
            "tools": as_sent(self.echo.get("tools") or []),
            "tool_choice": "auto",
            "truncation": "disabled",
            "parallel_tool_calls": True,
            "text": {"format": {"type": "text"}},
            "top_p": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": 1,
            "reasoning": None,
            "usage": _usage(statistics) if statistics else None,
            "max_output_tokens": self.echo.get("max_output_tokens"),
            "max_tool_calls": None,
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(statistics: Statistics) -> dict[str, Any]:
    return {
        "input_tokens": statistics.prompt_count,
        "output_tokens": statistics.output_count,
        "total_tokens": statistics.prompt_count + statistics.output_count,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
