"""Timeouts, and deadlines that share one timer, so that setting and dropping one is cheap."""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass

OFFLINE_SILENCE = 5.0
"""Seconds for which a part of an answer proves that its agent is alive."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds: to reach an agent, to the first byte of its answer, in the queue."""

    connect: float = 5.0
    response: float = 600.0
    queue: float = 300.0


class Deadlines[T: Hashable]:
    """Calls `expire` with each item whose deadline passes. Times are those of `clock`."""

    def __init__(
        self,
        clock: Callable[[], float],
        expire: Callable[[T], None],
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle] | None = None,
    ) -> None:
        self._clock = clock
        self._expire = expire
        self._call_later = call_later
        """None: the running loop's."""
        self._due: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = float("inf")
        """When the timer fires."""

    def __len__(self) -> int:
        return len(self._due)

    def set(self, item: T, at: float) -> None:
        self._due[item] = at
        if at < self._next:
            self._arm(at)

    def drop(self, item: T) -> None:
        """Does nothing if there is none."""
        self._due.pop(item, None)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        call_later = self._call_later or asyncio.get_running_loop().call_later
        self._next = at
        self._timer = call_later(max(0.0, at - self._clock()), self._fire)

    def _fire(self) -> None:
        self._timer, self._next = None, float("inf")
        now = self._clock()
        try:
            for item in [item for item, at in self._due.items() if at <= now]:
                if self._due.pop(item, None) is not None:
                    self._expire(item)
        finally:  # a fault with one must not keep the others waiting
            if self._due:
                self._arm(min(self._due.values()))
