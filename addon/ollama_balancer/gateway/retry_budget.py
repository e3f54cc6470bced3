"""Limits retries to a share of all requests.

Retries multiply load: on an overloaded fleet each request would be run, and refused, by three agents. As in Finagle's
RetryBudget, retries may be a share of the requests plus a constant rate for an idle fleet.
"""

from collections import deque
from collections.abc import Callable

SHARE = 0.2
"""Retries for each request of the window: as Finagle's `RetryBudget` has by default."""

PER_SECOND = 3.0
"""Retries for each second of the window, whatever the requests. Finagle has 10, for services with
many more requests."""

WINDOW = 10
"""Seconds that are looked back on, as Finagle does."""


class RetryBudget:
    """Bounds the retries of any `WINDOW` seconds. `clock` gives monotonic seconds."""

    __slots__ = ("_clock", "_requests", "_retries", "_seconds")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: deque[list[int]] = deque()
        """The second, and its requests and retries, of each second of the window in which there were any."""
        self._requests = 0
        self._retries = 0

    def __repr__(self) -> str:
        return f"RetryBudget({self._retries} of {self.limit:.0f} retries)"

    @property
    def limit(self) -> float:
        """How many retries the window may have."""
        self._expire(int(self._clock()))
        return SHARE * self._requests + PER_SECOND * WINDOW

    def count(self) -> None:
        """A request is sent for the first time."""
        self._requests += 1
        self._now()[1] += 1

    def spend(self) -> bool:
        """Whether a request may be sent again, which then counts."""
        if self._retries + 1 > self.limit:
            return False
        self._retries += 1
        self._now()[2] += 1
        return True

    def _now(self) -> list[int]:
        second = int(self._clock())
        seconds = self._seconds
        if seconds and seconds[-1][0] == second:
            return seconds[-1]
        self._expire(second)
        entry = [second, 0, 0]
        seconds.append(entry)
        return entry

    def _expire(self, second: int) -> None:
        seconds = self._seconds
        while seconds and seconds[0][0] <= second - WINDOW:
            _, requests, retries = seconds.popleft()
            self._requests -= requests
            self._retries -= retries
