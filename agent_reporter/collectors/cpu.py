"""CPU: the utilization of all processors since the last report."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import psutil

from .base import Fields, Host

SHORTEST = 0.5
"""The shortest measurement in seconds: the counters have a resolution of some milliseconds."""


class CpuTimes(Protocol):
    """psutil's scputimes: seconds by use, as a named tuple. Its fields differ between systems."""

    @property
    def _fields(self) -> tuple[str, ...]: ...


class _Sample(NamedTuple):
    at: float
    times: CpuTimes


class CpuCollector:
    """Collects `cpu_usage` in percent. Not with psutil.cpu_percent, whose state is shared by all its callers."""

    def __init__(
        self,
        host: Host,
        *,
        read: Callable[[], CpuTimes] = psutil.cpu_times,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        del host
        self._read = read
        self._clock = clock
        self._sleep = sleep
        self._last = self._sample()

    async def collect(self) -> Fields:
        too_early = self._last.at + SHORTEST - self._clock()
        if too_early > 0:
            await self._sleep(too_early)
        before, self._last = self._last, self._sample()
        return {"cpu_usage": busy_percent(before.times, self._last.times)}

    def _sample(self) -> _Sample:
        return _Sample(self._clock(), self._read())


def busy_percent(before: CpuTimes, after: CpuTimes) -> float:
    """Percent of time that was neither idle nor waiting for I/O. Raises ValueError if no time has passed."""
    spent: dict[str, float] = {
        field: max(0.0, end - start)  # some counters step back
        for field, start, end in zip(
            after._fields, cast(Sequence[Any], before), cast(Sequence[Any], after), strict=True
        )
        if field not in ("guest", "guest_nice")  # Linux counts these within user and nice
    }
    total = sum(spent.values())
    if total <= 0:
        raise ValueError("the system's CPU counters do not change")
    waiting = spent.get("idle", 0.0) + spent.get("iowait", 0.0)
    return min(100.0, max(0.0, 100.0 * (total - waiting) / total))
