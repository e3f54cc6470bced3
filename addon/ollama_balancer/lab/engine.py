"""A discrete-event engine."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count


class Event:
    """Something that is due; `cancel` keeps it from happening."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Engine:
    """A clock in seconds that jumps from event to event. Calling it returns the time, as `time.monotonic` does."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Event]] = []
        self._numbers = count()

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float, action: Callable[[], None]) -> Event:
        event = Event(action)
        heappush(self._due, (self.now + seconds, next(self._numbers), event))
        return event

    @property
    def next_due(self) -> float | None:
        """The time of the next event; None if there is none."""
        due = self._due
        while due and due[0][2].action is None:
            heappop(due)
        return due[0][0] if due else None

    def run(self, until: float) -> None:
        """Run all events up to that time."""
        due = self._due
        while due and due[0][0] <= until:
            self.now, _, event = heappop(due)
            action, event.action = event.action, None
            if action is not None:
                action()
        self.now = until
