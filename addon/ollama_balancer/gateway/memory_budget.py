"""One memory budget for all request bodies and stored answers.

Each holder has a `Reservation`, which grows in steps and is released once. Before a request is refused, `on_shortage`
drops what is stored for inspection only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

STEP = 64 * 1024
"""Bytes by which a reservation grows, so that the budget is asked rarely."""

PART = 4
"""The default limit is this fraction of memory: one part of so many."""

UNKNOWN_MEMORY = 4 * 1024**3
"""Assumed where the amount of memory is unknown."""

_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class MemoryBudget:
    """`limit` is in bytes and may be changed; existing reservations stay."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.on_shortage: Callable[[int], None] = lambda missing: None
        """Called with the number of missing bytes to free memory that is used for inspection only."""

    def __repr__(self) -> str:
        return f"MemoryBudget({self.used} of {self.limit})"

    def hold(self) -> Reservation:
        return Reservation(self)

    def take(self, size: int) -> bool:
        """Reserve so many more bytes if they are available."""
        missing = self.used + size - self.limit
        if missing > 0:
            self.on_shortage(missing)
            if self.used + size > self.limit:
                return False
        self.used += size
        return True

    def give_back(self, size: int) -> None:
        self.used -= size


class Reservation:
    """The memory that one holder has reserved."""

    __slots__ = ("_budget", "_released", "size")

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._released = False
        self.size = 0
        """Bytes, rounded up."""

    def grow(self, size: int) -> bool:
        """Grow to so many bytes in total; False, with nothing changed, if they are unavailable or it was released."""
        if self._released:
            return False
        more = -(-size // STEP) * STEP - self.size
        if more <= 0:
            return True
        if not self._budget.take(more):
            return False
        self.size += more
        return True

    def release(self) -> None:
        """Release everything for good."""
        if not self._released:
            self._released = True
            self._budget.give_back(self.size)
            self.size = 0


def machine_memory() -> int:
    """Bytes available to this process: the machine's memory or the limit of its control group."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        found = _psutil_memory()
    for path in _CGROUPS:
        try:
            allowed = int(path.read_text())
        except (OSError, ValueError):
            continue  # there is none, or it says "max"
        if 0 < allowed < found:
            found = allowed
    return found


def _psutil_memory() -> int:
    import psutil  # Windows has no sysconf

    return int(psutil.virtual_memory().total) or UNKNOWN_MEMORY
