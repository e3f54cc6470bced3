"""Network: how much the host has received and sent a second since the last report."""

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
    """Gives `network_received` and `network_sent` in bytes a second; nothing in the first report.

    `read` gives the counters of each interface, `clock` monotonic seconds.
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
    """By how much the counters grew, all interfaces together. One that is new, or began anew, counts from then on."""
    received = sent = 0
    for name, now in second.items():
        before = first.get(name, now)
        received += max(0, now.received - before.received)
        sent += max(0, now.sent - before.sent)
    return InterfaceCounters(received, sent)


def read_counters() -> Mapping[str, InterfaceCounters]:
    """Those of the interfaces by which the host meets others."""
    counters = psutil.net_io_counters(pernic=True, nowrap=True)
    names = external_interfaces(counters)
    return {name: InterfaceCounters(counters[name].bytes_recv, counters[name].bytes_sent) for name in names}


def is_device(name: str) -> bool:
    """Whether hardware is behind the interface, as Linux tells it; others don't."""
    return sys.platform == "linux" and (DEVICES / name / "device").exists()


def external_interfaces(names: Mapping[str, object], is_device: Callable[[str], bool] = is_device) -> list[str]:
    """Of the interfaces those of hardware, for bridges and containers would count the same bytes again; else all.

    Loopback is none of them.
    """
    others = [name for name in names if not name.lower().startswith(("lo", "isatap", "teredo"))]
    return [name for name in others if is_device(name)] or others
