"""Gives each finished request to the access log that the options name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from ..core.stats import RequestSummary
from ..gateway.access_entries import entry_of
from ..gateway.accounting import Accounting
from ..gateway.context import RequestContext
from ..storage import access_log

logger = logging.getLogger(__name__)


class AccessLog:
    def __init__(self, accounting: Accounting) -> None:
        self._accounting = accounting
        self._log: access_log.AccessLog | None = None

    @property
    def target(self) -> str:
        """Where it goes; empty: nowhere."""
        return self._log.target if self._log is not None else ""

    def use(self, target: str) -> None:
        """Write to that path, to standard output for -, or nowhere for "". ValueError: it cannot be written."""
        if self._log is not None and self._log.target == target:
            return
        try:
            log = access_log.AccessLog(target, log_in_loop(logger)) if target else None
        except OSError as e:
            raise ValueError(
                f"balancer_access_log: {target[:200]} cannot be written ({e.strerror or e}); name a file "
                "in a folder that is there and may be written, or -"
            ) from e
        earlier = self.detach()
        if earlier is not None:
            run_in_thread(earlier.close)
        self._log = log
        self._accounting.log = None if log is None else self._add

    def detach(self) -> access_log.AccessLog | None:
        """Log nothing from now on; returns what is to be closed, which takes as long as the disk does."""
        self._accounting.log = None
        log, self._log = self._log, None
        return log

    def _add(self, context: RequestContext, summary: RequestSummary) -> None:
        assert self._log
        self._log.add(entry_of(context, summary))


def run_in_thread(call: Callable[[], None]) -> None:
    """Run it in a thread, for which Python waits when it ends."""
    try:
        asyncio.get_running_loop().run_in_executor(None, call)
    except RuntimeError:
        call()


def log_in_loop(logger: logging.Logger) -> Callable[[str], None]:
    """Logs a warning from any thread: mitmproxy's handlers of log lines want to be called in its loop."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return logger.warning

    def report(text: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(logger.warning, "%s", text)

    return report
