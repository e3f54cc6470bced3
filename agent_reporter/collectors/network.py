"""Network: bytes received and sent per second since the last report."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from .base import Fields, Host

DEVICES = Path("/sys/class/net")


class InterfaceCounters(NamedTuple):
    """Bytes of one interface since it came up."""

    received: int
    sent: int


class NetworkCollector:
    """Collects `network_received` and `network_sent` in bytes per second; nothing in the first report.

    `read` returns the counters of each interface, `clock` monotonic seconds.
    """

    def __init__(
        self,
        host: Host,
        read: Callable[[], Mapping[str, InterfaceCounters]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        del host
        self._read = read or read_counters
        self._clock = clock
        self._last: tuple[float, Mapping[str, InterfaceCounters]] | None = None

    async def collect(self) -> Fields:
        before, self._last = self._last, (self._clock(), self._read())
        if before is None:
            return {}
        (began, first), (ended, second) = before, self._last
        received, sent = growth(first, second)
        seconds = ended - began
        if seconds <= 0:
            return {}
        return {"network_received": round(received / seconds, 1), "network_sent": round(sent / seconds, 1)}


def growth(first: Mapping[str, InterfaceCounters], second: Mapping[str, InterfaceCounters]) -> InterfaceCounters:
    """The growth of the counters, summed over the interfaces. New and reset counters count from now on."""
    received = sent = 0
    for name, now in second.items():
        before = first.get(name, now)
        received += max(0, now.received - before.received)
        sent += max(0, now.sent - before.sent)
    return InterfaceCounters(received, sent)


def read_counters() -> Mapping[str, InterfaceCounters]:
    """The counters of the external interfaces."""
    counters = psutil.net_io_counters(pernic=True, nowrap=True)
    names = external_interfaces(counters)
    return {name: InterfaceCounters(counters[name].bytes_recv, counters[name].bytes_sent) for name in names}


def is_device(name: str) -> bool:
    """Whether the interface is a hardware device; known on Linux only."""
    return sys.platform == "linux" and (DEVICES / name / "device").exists()


def external_interfaces(names: Mapping[str, object], is_device: Callable[[str], bool] = is_device) -> list[str]:
    """The hardware interfaces, as bridges and containers count the same bytes again; if unknown, all but loopback."""
    others = [name for name in names if not name.lower().startswith(("lo", "isatap", "teredo"))]
    return [name for name in others if is_device(name)] or others
