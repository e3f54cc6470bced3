"""Watches an answer as it passes: keeps its bytes for inspection and tells at the end whether it was whole.

Success means that the terminal event was seen: a runner that crashes still ends its stream cleanly.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import Any

KEEP_BYTES = 4 * 1024 * 1024
"""How much of an answer's beginning is kept for inspection."""

TAIL_BYTES = 2 * 1024 * 1024
"""How much of its end is read to find the terminal event: /api/generate's carries the context, some 7 bytes a token."""

_SSE_TERMINALS = (b"data: [DONE]", b"event: message_stop", b"event: response.completed", b"event: response.incomplete")


@dataclass(frozen=True)
class Verdict:
    """What the end of an answer says."""

    whole: bool
    error: str | None = None
    output_tokens: int | None = None
    decode_seconds: float | None = None

    @property
    def tokens_per_second(self) -> float | None:
        if not self.output_tokens or not self.decode_seconds:
            return None
        return self.output_tokens / self.decode_seconds


class AnswerWatcher:
    """Fed with the chunks of one answer's body, in order."""

    def __init__(self, content_type: str) -> None:
        self.content_type = content_type
        self.bytes_seen = 0
        self._head: list[bytes] = []
        self._head_size = 0
        self._tail: deque[bytes] = deque()
        self._tail_size = 0

    @property
    def streamed(self) -> bool:
        """Whether it is a stream of events, which has a terminal event."""
        return "ndjson" in self.content_type or "event-stream" in self.content_type

    def feed(self, chunk: bytes) -> None:
        self.bytes_seen += len(chunk)
        room = KEEP_BYTES - self._head_size
        if room >= len(chunk):
            self._head.append(chunk)
            self._head_size += len(chunk)
            return
        if room:
            self._head.append(chunk[:room])
            self._head_size = KEEP_BYTES
        tail = self._tail
        tail.append(chunk[room:])
        self._tail_size += len(chunk) - room
        while self._tail_size - len(tail[0]) >= TAIL_BYTES:
            self._tail_size -= len(tail.popleft())

    @property
    def kept(self) -> bytes:
        """The answer's beginning, all of it up to `KEEP_BYTES`."""
        return b"".join(self._head)

    @property
    def truncated(self) -> bool:
        return self.bytes_seen > self._head_size

    @property
    def ends_in_newline(self) -> bool:
        end = self._end(1)
        return not end or end == b"\n"

    def verdict(self) -> Verdict:
        """To be asked once the body has ended."""
        end = self._end()
        if "event-stream" in self.content_type:
            lines = b"\n" + end
            whole = any(b"\n" + terminal in lines for terminal in _SSE_TERMINALS)
            return Verdict(whole, None if whole else "the stream ended without its terminal event")
        last = _last_object(end)
        if last is None:
            if self.streamed:
                return Verdict(False, "the stream ended without its terminal event")
            return Verdict(True)
        if last.get("error") is not None:  # /v1/responses has a null there
            return Verdict(False, str(last["error"])[:500])
        if self.streamed and last.get("done") is not True and last.get("status") != "success":
            return Verdict(False, "the stream ended without its terminal event")
        return Verdict(True, None, _count(last.get("eval_count")), _seconds(last.get("eval_duration")))

    def _end(self, size: int = TAIL_BYTES) -> bytes:
        """The last `size` bytes, however they were split. Joins no more chunks than it takes."""
        parts: list[bytes] = []
        for chunk in chain(reversed(self._tail), reversed(self._head)):
            parts.append(chunk)
            size -= len(chunk)
            if size <= 0:
                break
        end = b"".join(reversed(parts))
        return end[-size:] if size < 0 else end


def _last_object(end: bytes) -> dict[str, Any] | None:
    lines = end.strip().rsplit(b"\n", 1)
    try:
        value = json.loads(lines[-1])
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53 else None


def _seconds(nanoseconds: object) -> float | None:
    count = _count(nanoseconds)
    return None if count is None else count / 1e9
