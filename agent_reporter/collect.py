"""Makes one report from all collectors. One that fails, hangs or tells nonsense never stops the rest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from .collectors import COLLECTORS, Collector, Fields, Host
from .states import StateLog, printable
from .wire import AgentMetrics

COLLECTOR_TIMEOUT = 5.0
"""Seconds that one collector may take."""

UNKNOWN: Fields = {"cpu_usage": 50.0, "memory_usage": 50.0, "active_requests": 0}
"""What a report says of required fields that could not be read: a load that neither draws requests nor repels them."""


class Collection:
    """All collectors of a host; calling it makes a report."""

    def __init__(
        self,
        host: Host,
        collectors: Mapping[str, Callable[[Host], Collector]] = COLLECTORS,
        timeout: float = COLLECTOR_TIMEOUT,
    ) -> None:
        self._collectors = [_Guarded(name, make, host, timeout) for name, make in collectors.items()]

    async def __call__(self) -> AgentMetrics:
        fields: Fields = {**UNKNOWN, "timestamp": datetime.now(UTC)}
        for collector in self._collectors:
            fields = await collector.add_to(fields)
        return AgentMetrics.model_validate({**fields, "timestamp": datetime.now(UTC)})


class _Guarded:
    """A collector whose failures are said once and go no further."""

    def __init__(self, name: str, make: Callable[[Host], Collector], host: Host, timeout: float) -> None:
        self._name = name
        self._make = make
        self._host = host
        self._timeout = timeout
        self._collector: Collector | None = None
        self._state = StateLog("fine")
        try:
            self._collector = make(host)
        except Exception as error:
            self._say_failed(error)

    async def add_to(self, fields: Fields) -> Fields:
        """`fields` with this collector's, or as they are."""
        try:
            if self._collector is None:
                self._collector = self._make(self._host)
            async with asyncio.timeout(self._timeout):
                together = {**fields, **await self._collector.collect()}
            AgentMetrics.model_validate(together)
        except Exception as error:
            self._say_failed(error)
            return fields
        self._state.say("fine", logging.INFO, f"collector {self._name} works again")
        return together

    def _say_failed(self, error: Exception) -> None:
        why = printable(" ".join(f"{type(error).__name__}: {error}".split()))
        self._state.say("failing", logging.WARNING, f"collector {self._name} failed ({why}); reports go on without it")
