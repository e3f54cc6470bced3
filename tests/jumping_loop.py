"""An event loop whose time is not the machine's: when nothing is left to do, it jumps to the next timer.

What is tested waits for its own seconds, or hours, in no time, and nothing is late because the machine is busy. Sockets
within the process work as ever; what a thread of an executor does takes no time. Pass the loop's `time` to what takes a
clock.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any

SETTLING = 0.002
"""Real seconds without an event after which nothing is on its way through the system's loopback."""


class _Selector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self.others = 0
        """What threads do for the loop at this moment."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(None if self.others else SETTLING)
        if not ready:
            self.time += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.time

    def run_in_executor[*Ts, T](
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._clock.others += 1
        future.add_done_callback(self._other_is_done)
        return future

    def _other_is_done(self, _: asyncio.Future[Any]) -> None:
        self._clock.others -= 1

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await super().shutdown_default_executor()  # a time-out would be over at once


def run[T](main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)
