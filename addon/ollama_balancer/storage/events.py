"""The file of what has happened, which outlives the process: written whole, and never in the way of a start."""

import threading
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ..core.events import MAX_EVENTS, MAX_REASON, Event, EventKind
from ..text import one_line
from .whole_file import WholeFile, Words

FILE_NAME = "ollama-balancer-events.json"

MAX_BYTES = 4 * 1024 * 1024

_Name = Annotated[str, StringConstraints(max_length=200)]
_Time = Annotated[float, Field(ge=0, le=2**40, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, le=2**52)]


class StoredEvent(BaseModel):
    model_config = ConfigDict(extra="ignore")

    number: _Count
    time: _Time
    kind: EventKind
    agent: _Name | None
    key: _Name | None
    reason: Annotated[str, StringConstraints(max_length=MAX_REASON)]
    times: _Count = 1
    first: _Time | None = None

    def event(self) -> Event:
        agent, key = [None if name is None else one_line(name) for name in (self.agent, self.key)]
        reason = one_line(self.reason, MAX_REASON)
        return Event(self.number, self.time, self.kind, agent, key, reason, self.times, self.first)


class StoredEvents(BaseModel):
    model_config = ConfigDict(extra="ignore")

    version: Literal[1]
    events: Annotated[list[StoredEvent], Field(max_length=MAX_EVENTS)]


WORDS = Words("The events", "a valid list of events", unreadable="new ones are not saved")


class EventFile:
    """Its methods do I/O, and may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = WholeFile(path, MAX_BYTES, WORDS)
        self._lock = threading.Lock()

    def read(self) -> list[Event]:
        """The stored events. A damaged file is renamed."""
        return self._file.read(_parse) or []

    def save(self, events: list[Event]) -> bool:
        """Replace the file; False if that failed, which is logged once."""
        with self._lock:
            stored = [StoredEvent.model_construct(**event._asdict()) for event in events]
            return self._file.write(StoredEvents.model_construct(version=1, events=stored).model_dump_json() + "\n")


def _parse(content: bytes) -> list[Event]:
    return [stored.event() for stored in StoredEvents.model_validate_json(content).events]
