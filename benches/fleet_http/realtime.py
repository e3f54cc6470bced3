"""Simulated time that goes with the clock, only faster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ollama_balancer.lab.engine import Engine, Event


class RealTimeEngine(Engine):
    """`speed` simulated seconds go by in one second of the loop.

    Each event finds `now` at the very moment for which it was due, however late the loop is: what is simulated does
    not depend on the machine's speed, and only what is told to the outside comes late. Who comes from outside calls
    `catch_up` first.
    """

    def __init__(self, speed: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.speed = speed
        self.loop = loop
        self._start = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._running = False

    def after(self, seconds: float, action: Callable[[], None]) -> Event:
        event = super().after(seconds, action)
        if not self._running:
            self._set_timer()
        return event

    def catch_up(self) -> None:
        """Have everything happen that is due by now."""
        if self._running:
            return
        self._running = True
        try:
            self.run(max(self.now, (self.loop.time() - self._start) * self.speed))
        finally:
            self._running = False
            self._set_timer()

    def _set_timer(self) -> None:
        due = self.next_due
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self.loop.call_at(self._start + due / self.speed, self.catch_up)
