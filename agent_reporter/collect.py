"""Collects one report. A collector that fails, hangs or returns invalid data does not affect the others.

The report includes how long each collector took and whether it succeeded.
"""

import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone

from . import __version__
from .collectors import COLLECTORS, Collector, Fields, Host, PartialError
from .states import StateLog, printable
from .timeouts import timeout
from .wire import AgentMetrics, CollectorOutcome

COLLECTOR_TIMEOUT = 5.0
"""Seconds that one collector may take."""

UNKNOWN: Fields = {"cpu_usage": 50.0, "memory_usage": 50.0, "active_requests": 0}
"""Required fields that could not be read: a load that neither attracts nor repels requests."""


class Collection:
    """All collectors of a host; calling it makes a report."""

    def __init__(
        self,
        host: Host,
        collectors: Mapping[str, Callable[[Host], Collector]] = COLLECTORS,
        timeout: float = COLLECTOR_TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._collectors = [_SafeCollector(name, make, host, timeout) for name, make in collectors.items()]

    async def __call__(self) -> AgentMetrics:
        fields: Fields = {**UNKNOWN, "reporter_version": __version__, "timestamp": datetime.now(timezone.utc)}
        outcomes = []
        for collector in self._collectors:
            began = self._clock()
            fields, ok = await collector.add_to(fields)
            seconds = round(max(0.0, self._clock() - began), 6)
            outcomes.append(CollectorOutcome(name=collector.name, ok=ok, seconds=seconds))
        return AgentMetrics.model_validate({**fields, "collectors": outcomes, "timestamp": datetime.now(timezone.utc)})


class _SafeCollector:
    """Runs a collector; its failures are logged once and contained."""

    def __init__(self, name: str, make: Callable[[Host], Collector], host: Host, timeout: float) -> None:
        self.name = name
        self._make = make
        self._host = host
        self._timeout = timeout
        self._collector: Collector | None = None
        self._state = StateLog("fine")
        try:
            self._collector = make(host)
        except Exception as error:
            self._say_failed(error)

    async def add_to(self, fields: Fields) -> tuple[Fields, bool]:
        """Add the collector's fields if it succeeds; returns the fields and whether it did."""
        try:
            if self._collector is None:
                self._collector = self._make(self._host)
            partly = False
            try:
                async with timeout(self._timeout):
                    collected = await self._collector.collect()
            except PartialError as error:
                collected, partly = error.fields, True
            together = {**fields, **collected}
            AgentMetrics.model_validate(together)
        except Exception as error:
            self._say_failed(error)
            return fields, False
        self._state.say("fine", logging.INFO, f"collector {self.name} works again")
        return together, not partly

    def _say_failed(self, error: Exception) -> None:
        why = printable(" ".join(f"{type(error).__name__}: {error}".split()))
        self._state.say("failing", logging.WARNING, f"collector {self.name} failed ({why}); reports go on without it")
