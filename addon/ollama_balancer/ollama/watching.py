"""Watches an answer as it passes: keeps it for inspection and tells at the end whether it was whole.

Success means that the terminal event was seen: a runner that crashes still ends its stream cleanly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pydantic_core import from_json

from .answers import Answer
from .events import Unended, event_parser
from .json_scanning import is_light
from .keeping import KeptBody
from .shapes import read_answer

READ_BYTES = 4 * 1024 * 1024
"""A larger answer that is no stream is not read."""

NO_TERMINAL = "the stream ended without its terminal event"


class Verdict(NamedTuple):
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
    """Fed with the chunks of one answer's body, in order. `keep` is how many bytes of a stream are kept.

    `answer` is what the body has said so far; of an answer that is no stream, once the verdict was asked. With `skims`
    only how the answer goes and ends is told, not its text. `room` is `KeptBody`'s.
    """

    def __init__(
        self,
        content_type: str,
        keep: int = READ_BYTES,
        *,
        skims: bool = False,
        room: Callable[[int], bool] | None = None,
    ) -> None:
        self.content_type = content_type
        self.answer = Answer()
        self._parser = event_parser(content_type)
        self.kept = KeptBody(keep if self._parser is not None else max(keep, READ_BYTES), room)
        self._skims = skims

    @property
    def streamed(self) -> bool:
        """Whether it is a stream of events, which has a terminal event."""
        return self._parser is not None

    @property
    def terminal_seen(self) -> bool:
        return self.answer.terminal

    @property
    def unended(self) -> Unended:
        """What a stream has sent since its last event's end; to be asked before the verdict."""
        return Unended(b"", b"") if self._parser is None else self._parser.unended

    def feed(self, chunk: bytes) -> None:
        self.kept.feed(chunk)
        if self._parser is None:
            return
        if self._skims and (events := self._parser.middle(chunk)):
            self.answer.skip(events)
            return
        for event in self._parser.feed(chunk):
            self.answer.add(event)

    def verdict(self) -> Verdict:
        """To be asked once the body has ended; what is fed afterwards begins on a line of its own."""
        answer = self.answer
        if self._parser is None:
            answer = self._read_whole()
        else:
            for event in self._parser.close():
                answer.add(event)
        if answer.error is not None:
            return Verdict(False, answer.error)
        # An event that is too large to be read ends only streams whose last event carries the conversation's context.
        if self._parser is not None and not answer.terminal and not answer.ends_too_large:
            return Verdict(False, NO_TERMINAL)
        return Verdict(True, None, answer.timings.eval_count, answer.timings.eval_duration)

    def _read_whole(self) -> Answer:
        answer, kept = self.answer, self.kept
        if not answer.events and "json" in self.content_type and kept.bytes_seen <= READ_BYTES:
            body = kept.joined()
            if not is_light(body):
                return answer
            try:
                value = from_json(body, cache_strings="keys")
            except ValueError:
                return answer
            if isinstance(value, dict):
                answer.add(read_answer(value))
        return answer
