"""Watches an answer as it passes: stores it for inspection and judges whether it is complete.

Success means that the terminal event was seen: a crashed runner still ends its stream cleanly.
"""

from collections.abc import Callable
from typing import NamedTuple

from pydantic_core import from_json

from .answers import Answer
from .body_capture import CapturedBody
from .decompression import MAX_GROWTH, MIN_LIMIT, DecompressionError, decompressor_for
from .events import PartialEvent, event_parser
from .json_scanning import is_light
from .shapes import read_answer, speed_of

READ_BYTES = 4 * 1024 * 1024
"""Bytes of the largest unstreamed answer that is parsed."""

MAX_DECOMPRESSED = 1024 * 1024
"""Bytes after decompression of one piece of a compressed stream; beyond that the rest is not parsed."""

NO_TERMINAL = "the stream ended without its terminal event"


class Verdict(NamedTuple):
    """The verdict on a finished answer."""

    whole: bool
    error: str | None = None
    output_tokens: int | None = None
    decode_seconds: float | None = None

    @property
    def tokens_per_second(self) -> float | None:
        return speed_of(self.output_tokens, self.decode_seconds)


class AnswerWatcher:
    """Fed with the chunks of one answer's body, in order. `keep` is how many bytes of a stream are kept.

    `answer` is what the body has said so far; of an answer that is no stream, once the verdict was asked. With `skim`
    only how the answer goes and ends is told, not its text. `room` is `CapturedBody`'s.
    """

    def __init__(
        self,
        content_type: str,
        keep: int = READ_BYTES,
        *,
        skim: bool = False,
        room: Callable[[int], bool] | None = None,
    ) -> None:
        self.content_type = content_type
        self.answer = Answer()
        self._parser = event_parser(content_type)
        self.captured = CapturedBody(keep if self._parser is not None else max(keep, READ_BYTES), room)
        self._skim = skim

    @property
    def streamed(self) -> bool:
        """Whether it is a stream of events, which has a terminal event."""
        return self._parser is not None

    @property
    def compressed(self) -> bool:
        """Whether the body is compressed and stored decompressed."""
        return False

    @property
    def terminal_seen(self) -> bool:
        return self.answer.terminal

    @property
    def partial_event(self) -> PartialEvent:
        """The incomplete event at the end; to be read before the verdict."""
        return PartialEvent(b"", b"") if self._parser is None else self._parser.partial_event

    def feed(self, chunk: bytes) -> None:
        self.captured.feed(chunk)
        if self._parser is None:
            return
        if self._skim and (events := self._parser.middle(chunk)):
            self.answer.skip(events)
            return
        for event in self._parser.feed(chunk):
            self.answer.add(event)

    def feed_trailer(self, trailer: bytes) -> None:
        """Record what the balancer appends to the body, as the client reads it."""
        self.feed(trailer)

    def encode_trailer(self, trailer: bytes) -> bytes | None:
        """The bytes that append this text and end the body; None if that is not possible."""
        return trailer

    @property
    def missing_end(self) -> bytes:
        """The missing end of a compressed body whose answer is complete."""
        return b""

    def verdict(self) -> Verdict:
        """The verdict, once the body has ended; anything fed afterwards starts a new line."""
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
        answer, captured = self.answer, self.captured
        if not answer.events and "json" in self.content_type and captured.bytes_seen <= READ_BYTES:
            body = captured.joined()
            if not is_light(body):
                return answer
            try:
                value = from_json(body, cache_strings="keys")
            except ValueError:
                return answer
            if isinstance(value, dict):
                answer.add(read_answer(value))
        return answer


class CompressedAnswerWatcher(AnswerWatcher):
    """Watches a compressed body. One that cannot be decompressed counts as complete."""

    def __init__(
        self,
        encoding: str,
        content_type: str,
        keep: int = READ_BYTES,
        *,
        skim: bool = False,
        room: Callable[[int], bool] | None = None,
    ) -> None:
        super().__init__(content_type, keep, skim=skim, room=room)
        self._decompressor = decompressor_for(encoding)
        self._unreadable = self._decompressor is None
        self._most = MAX_DECOMPRESSED if self.streamed else READ_BYTES

    @property
    def compressed(self) -> bool:
        return self._decompressor is not None

    def feed(self, chunk: bytes) -> None:
        if self._decompressor is None:
            self.captured.feed(chunk)
        elif not self._unreadable:
            most = min(max(MIN_LIMIT, MAX_GROWTH * len(chunk)), self._most)
            try:
                text = self._decompressor.feed(chunk, most)
            except DecompressionError:
                self._unreadable = True
            else:
                super().feed(text)

    def feed_trailer(self, trailer: bytes) -> None:
        super().feed(trailer)

    def encode_trailer(self, trailer: bytes) -> bytes | None:
        return None if self._decompressor is None or self._unreadable else self._decompressor.encode_trailer(trailer)

    @property
    def missing_end(self) -> bytes:
        if self._decompressor is None or self._unreadable or self._decompressor.ended:
            return b""
        return self._decompressor.encode_trailer(b"") or b""

    def verdict(self) -> Verdict:
        return Verdict(True) if self._unreadable else super().verdict()


def watcher_of(content_type: str, encoding: str, keep: int, room: Callable[[int], bool] | None = None) -> AnswerWatcher:
    """A watcher for these headers that stores but skims the text; `encoding` may be empty."""
    if encoding in ("", "identity"):
        return AnswerWatcher(content_type, keep, skim=True, room=room)
    return CompressedAnswerWatcher(encoding, content_type, keep, skim=True, room=room)
