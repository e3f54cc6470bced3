"""What has happened to the fleet: changes of state with their reasons, the last 1,000. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

MAX_EVENTS = 1000

MAX_OF_ONE = 100
"""Events of one agent, and refused keys together: neither pushes out what happened elsewhere."""

COLLAPSED_SECONDS = 3600.0
"""Seconds within which the same key's, or the same address's, refusals are one event."""

MAX_REASON = 300


class EventKind(StrEnum):
    """The values are those of the API."""

    STARTED = "started"
    STOPPED = "stopped"
    REGISTERED = "registered"
    MOVED = "moved"
    REMOVED = "removed"
    ONLINE = "online"
    OFFLINE = "offline"
    UNREACHABLE = "unreachable"
    UNAUTHORIZED = "unauthorized"
    EJECTED = "ejected"
    BACK = "back"
    DRAINED = "drained"
    RESUMED = "resumed"
    MODE = "mode changed"
    OPTION = "option changed"
    CONFIG = "config reloaded"
    CONFIG_REFUSED = "config refused"
    ACCESS = "access changed"
    KEY_REFUSED = "key refused"


REFUSALS = "refusals"


class Event(NamedTuple):
    number: int
    """Grows with each event, over restarts too."""
    time: float
    """Seconds since 1970; of one that was repeated, the last time."""
    kind: EventKind
    agent: str | None
    key: str | None
    """The name of a client key."""
    reason: str
    times: int = 1
    """How often it has happened since `first`."""
    first: float | None = None
    """When it happened first; None if it has happened once."""

    @property
    def group(self) -> str | None:
        """What its share of the list is counted by."""
        return REFUSALS if self.kind is EventKind.KEY_REFUSED else f"agent {self.agent}" if self.agent else None


class Events:
    """`wall` gives seconds since 1970. `revision` grows with each change."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self.revision = 0
        self._wall = wall
        self._events: dict[int, Event] = {}
        """By number, the oldest first."""
        self._groups: defaultdict[str | None, dict[int, None]] = defaultdict(dict)
        """The numbers of each group's events, the oldest first."""
        self._refusals: dict[str, int] = {}
        """The numbers of the events of refused keys, by who presented them."""
        self._last = 0

    def __iter__(self) -> Iterator[Event]:
        return iter(list(self._events.values()))

    def __len__(self) -> int:
        return len(self._events)

    def add(self, kind: EventKind, reason: str = "", *, agent: str | None = None, key: str | None = None) -> None:
        """Something has happened. `reason` is text without control characters."""
        self._put(Event(self._next_number(), self._wall(), kind, agent, key, reason[:MAX_REASON]))

    def agent_changed(self, agent: str, kind: EventKind, reason: str) -> None:
        """The state of an agent has changed."""
        self.add(kind, reason, agent=agent)

    def config_reloaded(self, what: str) -> None:
        """The configuration file was read again and applies: `what` it changed."""
        self.add(EventKind.CONFIG, what)

    def config_refused(self, problem: str) -> None:
        """The configuration file was read again and is not used."""
        self.add(EventKind.CONFIG_REFUSED, problem)

    def key_refused(self, reason: str, *, key: str | None, origin: str) -> None:
        """A key or token was refused: `key` is its name, if it is known; `origin` is the caller's address."""
        who, now = key or f"from {origin}", self._wall()
        before = self._events.get(self._refusals.get(who, 0))
        event = Event(self._next_number(), now, EventKind.KEY_REFUSED, None, key, reason[:MAX_REASON])
        first = None if before is None else before.time if before.first is None else before.first
        if before is not None and first is not None and now - first < COLLAPSED_SECONDS:
            self._drop(before.number)
            event = event._replace(times=before.times + 1, first=first)
        self._put(event)
        self._refusals[who] = event.number

    def after(self, number: int, limit: int) -> list[Event]:
        """The first events after that number, the oldest first."""
        return list(islice((event for event in self._events.values() if event.number > number), limit))

    def last(self, limit: int) -> list[Event]:
        """The last events, the oldest first."""
        return list(islice(self._events.values(), max(0, len(self._events) - limit), None))

    def restore(self, events: Iterable[Event]) -> None:
        """Put the events of an earlier run before those of this one."""
        current = list(self._events.values())
        self._events.clear()
        self._groups.clear()
        self._refusals.clear()
        for event in [*sorted(events, key=lambda event: event.number), *current]:
            self._put(event._replace(number=max(self._last_in_list + 1, event.number)))
        self._last = max(self._last, self._last_in_list)

    @property
    def _last_in_list(self) -> int:
        return next(reversed(self._events), 0)

    def _next_number(self) -> int:
        # By the time, so that it goes on growing after a restart without the file.
        self._last = max(self._last + 1, int(self._wall() * 1000))
        return self._last

    def _put(self, event: Event) -> None:
        self.revision += 1
        self._events[event.number] = event
        group = event.group
        numbers = self._groups[group]
        numbers[event.number] = None
        if group is not None and len(numbers) > MAX_OF_ONE:
            self._drop(next(iter(numbers)))
        while len(self._events) > MAX_EVENTS:
            self._drop(next(iter(self._events)))

    def _drop(self, number: int) -> None:
        event = self._events.pop(number)
        numbers = self._groups[event.group]
        del numbers[number]
        if not numbers:
            del self._groups[event.group]
        if event.kind is EventKind.KEY_REFUSED:
            self._refusals = {who: each for who, each in self._refusals.items() if each != number}
