"""Graceful shutdown: waits for running requests; a second signal shuts down at once."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable

from mitmproxy.utils import asyncio_utils

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05


class Stopper:
    """`running` returns the number of unfinished requests, `end` ends the program."""

    def __init__(self, running: Callable[[], int], end: Callable[[], None]) -> None:
        self.ending = False
        self._signals: tuple[signal.Signals, ...] = ()
        self._running = running
        self._end = end

    def listen(self, *signals: signal.Signals, timeout: Callable[[], float]) -> None:
        """Handle these signals from now on. Does nothing where the loop cannot, as on Windows."""
        self._signals = signals
        self._handle(lambda: self.request(timeout()))

    def release(self) -> None:
        """Let the signals end the program at once again."""
        self._handle(self._end)
        self._signals = ()

    def _handle(self, handler: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in self._signals:
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                loop.add_signal_handler(number, handler)

    def request(self, timeout: float) -> None:
        """Shut down when no request is running, or after `timeout` seconds; at once if called again."""
        if self.ending:
            self._end()
            return
        self.ending = True
        running = self._running()
        if running:
            logger.info(
                "Shutting down: %d running requests get up to %g s to finish; a second signal stops at once.",
                running,
                timeout,
            )
        asyncio_utils.create_task(self._wait(timeout), name="the end", keep_ref=True)

    async def _wait(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        idle_checks = 0
        while idle_checks < 2 and loop.time() < deadline:  # twice: the last bytes go out after a request has ended
            idle_checks = 0 if self._running() else idle_checks + 1
            await asyncio.sleep(POLL_SECONDS)
        remaining = self._running()
        if remaining:
            logger.warning("Shut down with %d requests unfinished after %g s.", remaining, seconds)
        self._end()
