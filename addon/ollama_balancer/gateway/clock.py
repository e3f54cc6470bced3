"""A monotonic clock that does not count the time for which the whole process was stopped.

After a SIGSTOP, or when the machine wakes up, every host would seem to have been silent for that long.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LONGEST_GAP = 3.0
"""Seconds between two readings. Somebody reads the clock every half second while the process runs."""

USUAL_GAP = 0.5


class SteadyClock:
    """Seconds. `monotonic` is the clock underneath."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last = monotonic()
        self._stopped = 0.0

    def __call__(self) -> float:
        now = self._monotonic()
        gap = now - self._last
        if gap > LONGEST_GAP:
            self._stopped += gap - USUAL_GAP
        self._last = now
        return now - self._stopped
