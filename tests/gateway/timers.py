"""A loop's timers, that go off when a test's clock says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.core.fakes import Clock


class _Timer:
    def __init__(self, at: float, action: Callable[[], Any]) -> None:
        self.at, self.action, self.over = at, action, False

    def cancel(self) -> None:
        self.over = True


class Timers:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all: list[_Timer] = []

    def call_later(self, seconds: float, action: Callable[[], Any]) -> asyncio.TimerHandle:
        timer: Any = _Timer(self._clock.now + seconds, action)
        self._all.append(timer)
        return timer  # type: ignore[no-any-return]

    @property
    def pending(self) -> list[float]:
        """When those go off that are set."""
        return sorted(timer.at for timer in self._all if not timer.over)

    def advance(self, to: float) -> None:
        """Until then, one after the other."""
        while self.pending and self.pending[0] <= to:
            timer = min((timer for timer in self._all if not timer.over), key=lambda timer: timer.at)
            self._clock.now, timer.over = max(self._clock.now, timer.at), True
            timer.action()
        self._clock.now = to
