"""One memory budget for all request bodies and stored answers.

Each holder has a `Reservation`, which grows in steps and is released once. Before a request is refused, `on_shortage`
drops what is stored for inspection only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

STEP = 64 * 1024
"""Bytes by which a hold grows: the budget is asked no more often."""

PART = 4
"""Of the machine's memory, what may be taken if nothing else is said: one part of so many."""

UNKNOWN_MEMORY = 4 * 1024**3
"""Where a machine does not say how much it has."""

_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class MemoryBudget:
    """`limit` in bytes may be changed; what is held already stays."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.on_shortage: Callable[[int], None] = lambda missing: None
        """Asked to give so many bytes back, as far as that can be."""

    def __repr__(self) -> str:
        return f"MemoryBudget({self.used} of {self.limit})"

    def hold(self) -> Reservation:
        return Reservation(self)

    def take(self, size: int) -> bool:
        """Whether there is room for so many more bytes, which are taken then."""
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
    """What one of them holds."""

    __slots__ = ("_budget", "_released", "size")

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._released = False
        self.size = 0
        """Bytes, rounded up."""

    def grow(self, size: int) -> bool:
        """Hold so many bytes in all. False: there is no room for them, or it has been released; nothing changes."""
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
        """Give all back, for good."""
        if not self._released:
            self._released = True
            self._budget.give_back(self.size)
            self.size = 0


def machine_memory() -> int:
    """Bytes that this process may have: the machine's, or what its control group allows where that is less."""
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
