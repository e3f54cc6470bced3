"""A monotonic clock that excludes the time during which the process was suspended.

Otherwise every host would appear to have been silent for that long after a SIGSTOP or when the machine wakes up.
"""

import time
from collections.abc import Callable

LONGEST_GAP = 3.0
"""Seconds. The running process reads the clock every half second, so a longer gap means that it was suspended."""

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
