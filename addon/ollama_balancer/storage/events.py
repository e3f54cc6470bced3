"""The file of what has happened, which outlives the process: written whole, and never in the way of a start."""

import logging
import os
import threading
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..core.events import MAX_EVENTS, MAX_REASON, Event, EventKind
from ..text import one_line
from .files import open_own, replace

logger = logging.getLogger(__name__)

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


class EventFile:
    """`path` is the file's; the folder is made if need be. Its methods do I/O, and may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._failed = False
        self._protected = False
        """Whether the file could not be read and must not be overwritten."""

    def read(self) -> list[Event]:
        """The stored events. A damaged file is renamed."""
        try:
            with open_own(self.path) as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES} bytes")
            return [stored.event() for stored in StoredEvents.model_validate_json(content).events]
        except FileNotFoundError:
            return []
        except OSError as e:
            self._protected = True
            logger.warning("The events cannot be read from %s (%s): new ones are not saved.", self.path, _reason(e))
        except ValueError as e:
            self._set_aside(e)
        return []

    def save(self, events: list[Event]) -> bool:
        """Replace the file; False if that failed, which is logged once."""
        with self._lock:
            if self._protected:
                return True
            stored = [StoredEvent.model_construct(**event._asdict()) for event in events]
            try:
                replace(self.path, StoredEvents.model_construct(version=1, events=stored).model_dump_json() + "\n")
            except OSError as e:
                if not self._failed:
                    logger.warning("The events cannot be saved to %s (%s). Trying again.", self.path, _reason(e))
                self._failed = True
                return False
            if self._failed:
                logger.info("The events are saved to %s again.", self.path)
            self._failed = False
            return True

    def _set_aside(self, error: ValueError) -> None:
        damaged = self.path.with_name(self.path.name + ".damaged")
        try:
            os.replace(self.path, damaged)
            where = f"it was renamed to {damaged}"
        except OSError as e:
            self._protected = True
            where = f"it could not be renamed ({_reason(e)}), so new events are not saved"
        logger.warning("%s is not a valid list of events: %s; %s.", self.path, _reason(error), where)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
