"""Reads the streams of Ollama's APIs as their bytes arrive: NDJSON, a JSON object a line, and server-sent events."""

import re
from typing import NamedTuple

from pydantic_core import from_json

from .json_scanning import is_light
from .shapes import CONTEXT_ENDS, TERMINAL, TOO_LARGE, Context, Event, read_event

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""A larger event is skipped, as is one with more than MAX_VALUES values, which is slow to parse.

The last event of /api/generate carries the context, some 7 bytes per token: a million tokens fit.
"""


SHORTEST = 12
"""Bytes of an event that may tell anything, such as {"error":""}: a shorter one is not read."""


class PartialEvent(NamedTuple):
    """The data since the last complete event."""

    line: bytes
    """The incomplete line."""
    data: bytes
    """The event's JSON so far, with what that line holds of it."""


class EventParser:
    """Fed with the bytes of one stream, split anywhere. What is not a JSON object is passed over."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data = bytearray()
        self._too_large = False
        self._begun = False
        """Whether any of those three is set: an event has begun and not ended."""

    @property
    def pending(self) -> int:
        """How many bytes are kept of an event that has not ended, at most `MAX_EVENT_BYTES`."""
        return len(self._line) + len(self._data)

    @property
    def partial_event(self) -> PartialEvent:
        """Of an event that is too large, no more than whether a line has begun."""
        line = bytes(self._line)
        return PartialEvent(line, b"" if self._too_large else bytes(self._data) + self._data_of(line))

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that end in these bytes."""
        raise NotImplementedError

    def middle(self, chunk: bytes) -> int:
        """How many events these bytes are, if it shows without reading them that they are whole ones in the middle of
        the stream that tell of no error; else 0. What has been counted here is not to be fed."""
        return 0

    def close(self) -> list[Event]:
        """The stream has ended: the event that it left unended, if any. Bytes fed afterwards begin a new line."""
        if self._too_large:
            self._too_large = self._begun = False
            self._line.clear()
            self._data.clear()
            return []
        return self._feed_lines(b"\n\n") if self._begun else []

    def _feed_lines(self, chunk: bytes) -> list[Event]:
        """Lines end with a line feed here."""
        if b"\n\n\n" in chunk or b"\n\r\n\r\n" in chunk:
            chunk = _BLANK_LINES.sub(b"\n\n", chunk)  # more than one says no more than one
        events: list[Event] = []
        line = self._line
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._make_room(end - start)
            if line:
                if not self._too_large:
                    line += chunk[start:end]
                event = self._end_line(bytes(line))
                line.clear()
            else:
                event = self._end_line(chunk[start:end])
            if event is not None:
                events.append(event)
            start = end + 1
        rest = len(chunk) - start
        if rest:
            self._make_room(rest)
            if not self._too_large:
                line += chunk[start:] if start else chunk
            elif not line:
                line += b" "  # all there is to know of it is that it is not empty
        self._begun = bool(line or self._data or self._too_large)
        return events

    def _make_room(self, size: int) -> None:
        """For so many more bytes of the line."""
        if len(self._line) + len(self._data) + size > MAX_EVENT_BYTES:
            self._too_large = True
            del self._line[1:]
            self._data.clear()

    def _end_line(self, line: bytes) -> Event | None:
        raise NotImplementedError

    def _data_of(self, line: bytes) -> bytes:
        raise NotImplementedError


_GOES_ON = b'"done":false}\n'
"""How all events of Ollama's own API end but the last. In valid JSON that is a member of the outermost object."""


_BLANK_LINES = re.compile(rb"(?:\r?\n){3,}+")


class NdjsonParser(EventParser):
    def middle(self, chunk: bytes) -> int:
        if self._begun or not chunk.endswith(_GOES_ON) or b'"error"' in chunk or b'"status"' in chunk:
            return 0
        lines = chunk.count(b"\n")
        return lines if chunk.count(_GOES_ON) == lines else 0

    def feed(self, chunk: bytes) -> list[Event]:
        # Mostly a chunk is one whole line.
        if self._begun or chunk.find(b"\n") != len(chunk) - 1 or len(chunk) > MAX_EVENT_BYTES:
            return self._feed_lines(chunk)
        event = _read(chunk)
        return [event] if event is not None else []

    def _end_line(self, line: bytes) -> Event | None:
        if self._too_large:
            self._too_large = False
            return TOO_LARGE
        return _read(line) if line else None

    def _data_of(self, line: bytes) -> bytes:
        return line


class SseParser(EventParser):
    """Of an event's fields only the data count: each JSON object tells its own type."""

    def __init__(self) -> None:
        super().__init__()
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[Event]:
        if self._after_cr or chunk.find(b"\r") >= 0:
            return self._feed_lines(self._with_line_feeds(chunk))
        size = len(chunk)
        if self._begun or size > MAX_EVENT_BYTES or not chunk.endswith(b"\n\n"):
            return self._feed_lines(chunk)
        # Mostly a chunk is whole events, each with one line of data.
        events: list[Event] = []
        start = 0
        while start < size:
            at = chunk.find(b"\n", start) + 1 if chunk.startswith(b"event:", start) else start
            end = chunk.find(b"\n", at)
            if not (chunk.startswith(b"data: ", at) and chunk.startswith(b"\n", end + 1)):
                return events + self._feed_lines(chunk[start:])
            event = _read(chunk[at + 6 : end])
            if event is not None:
                events.append(event)
            start = end + 2
        return events

    def _with_line_feeds(self, chunk: bytes) -> bytes:
        """In place of its carriage returns, with or without line feeds after them."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if chunk.endswith(b"\r"):
            self._after_cr = True
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _end_line(self, line: bytes) -> Event | None:
        if line:
            if not self._too_large and (line.startswith(b"data:") or line == b"data"):
                self._data += self._data_of(line) + b"\n"
            return None
        if self._too_large:
            self._too_large = False
            return TOO_LARGE
        data = bytes(self._data[:-1])
        self._data.clear()
        return _read(data) if data else None

    def _data_of(self, line: bytes) -> bytes:
        if not line.startswith(b"data:"):
            return b""
        return line[6 if line.startswith(b"data: ") else 5 :]


def event_parser(content_type: str) -> EventParser | None:
    """For a stream of that type, in lower case; None: it is no stream of events."""
    if "event-stream" in content_type:
        return SseParser()
    return NdjsonParser() if "ndjson" in content_type else None


_BEGINNINGS = (b"{", b" ", b"\t", b"\r", b"\n")
"""How a line can begin that is an object."""


def _read(data: bytes) -> Event | None:
    if len(data) < SHORTEST or data[:1] not in _BEGINNINGS:
        return TERMINAL if data.startswith(b"[DONE]") else None
    context = None
    if not is_light(data):
        data, context = _without_context(data)
        if not is_light(data):
            return TOO_LARGE
    try:
        value = from_json(data, cache_strings="keys")
    except ValueError:
        return None
    event = read_event(value) if isinstance(value, dict) else None
    return event if event is None or context is None else event._replace(context=context)


_CONTEXT = b'"context":['


def _without_context(data: bytes) -> tuple[bytes, Context | None]:
    """An event without the numbers of its context, which may be a million and need not be built; and what they say."""
    start = data.find(_CONTEXT) + len(_CONTEXT)
    end = data.find(b"]", start)
    numbers = data[start:end]
    if start < len(_CONTEXT) or end < 0 or numbers.translate(None, b"0123456789, "):
        return data, None
    window = 24 * CONTEXT_ENDS
    ends = numbers[:window].split(b",")[:CONTEXT_ENDS] + numbers[-window:].split(b",")[-CONTEXT_ENDS:]
    known = Context(numbers.count(b",") + 1, tuple([number.strip() for number in ends]))
    return data[:start] + data[end:], known
