"""What the events of an answer say together."""

from io import StringIO
from typing import NamedTuple

from .shapes import MAX_TOOL_CALLS, CallPart, Context, Event, Timings

_NO_TIMINGS = Timings()

MAX_TEXT = 1024 * 1024
"""How many characters are kept of an answer's text, of its thinking and of its tool calls."""


class ToolCall(NamedTuple):
    name: str
    arguments: str
    """JSON, as the model wrote it; of a stream that broke off, its beginning."""

    id: str


class _Call:
    __slots__ = ("arguments", "id", "name")

    def __init__(self, call_id: str, name: str) -> None:
        self.id = call_id
        self.name = name
        self.arguments = StringIO()


class Answer:
    """What the events of one answer say together, up to the terminal event; after it, only errors count."""

    def __init__(self) -> None:
        self.events = 0
        self.pieces = 0
        """Events that brought text: of a stream, mostly a token each."""
        self.context: Context | None = None
        self.terminal = False
        self.error: str | None = None
        """The first error's message."""

        self.timings = _NO_TIMINGS
        self._text = StringIO()
        self._text_room = MAX_TEXT
        self._thinking = StringIO()
        self._thinking_room = MAX_TEXT
        self._calls: list[_Call] = []
        self._by_number: dict[int, _Call] = {}
        self._calls_room = MAX_TEXT
        self._too_large_at = 0

    @property
    def text(self) -> str:
        return self._text.getvalue()

    @property
    def thinking(self) -> str:
        return self._thinking.getvalue()

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [ToolCall(call.name, call.arguments.getvalue(), call.id) for call in self._calls]

    @property
    def ends_too_large(self) -> bool:
        """Whether the last event was not read, so that it cannot be told whether it is the terminal one."""
        return 0 < self._too_large_at == self.events

    def skip(self, events: int) -> None:
        """So many events in the middle of a stream have not been read: they count as pieces."""
        self.events += events
        if not self.terminal:
            self.pieces += events

    def add(self, event: Event) -> None:
        self.events += 1
        text, thinking, calls, terminal, error, timings, too_large, context = event
        if error is not None and self.error is None:
            self.error = error
        if self.terminal:
            return
        if text or thinking:
            self.pieces += 1
        if text:
            room = self._text_room
            self._text_room = room - self._text.write(text if len(text) <= room else text[:room])
        if thinking:
            room = self._thinking_room
            self._thinking_room = room - self._thinking.write(thinking[:room])
        if calls:
            for part in calls:
                self._add_call(part)
        if timings is not None and self.timings is _NO_TIMINGS:
            self.timings = timings
        elif timings is not None:
            reported = {key: figure for key, figure in timings._asdict().items() if figure is not None}
            self.timings = self.timings._replace(**reported)
        if too_large:
            self._too_large_at = self.events
        if terminal:
            self.terminal = True
            self.context = context

    def _add_call(self, part: CallPart) -> None:
        call = None if part.number is None or part.begins else self._by_number.get(part.number)
        # Ollama may give each call the same index, https://github.com/ollama/ollama/issues/15497
        if call is None or (part.id and call.id and part.id != call.id):
            if len(self._calls) >= MAX_TOOL_CALLS:
                if part.number is not None:
                    self._by_number.pop(part.number, None)
                return
            call = _Call(self._room_for(part.id), self._room_for(part.name))
            self._calls.append(call)
            if part.number is not None:
                self._by_number[part.number] = call
        else:
            call.id = call.id or self._room_for(part.id)
            call.name = call.name or self._room_for(part.name)
        if part.replaces:
            self._calls_room += len(call.arguments.getvalue())
            call.arguments = StringIO()
        call.arguments.write(self._room_for(part.arguments))

    def _room_for(self, text: str) -> str:
        text = text[: self._calls_room]
        self._calls_room -= len(text)
        return text
