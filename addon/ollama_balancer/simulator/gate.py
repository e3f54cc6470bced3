"""What the faults do to a request before anything of it is answered."""

import asyncio
from collections.abc import Callable

from .answers import BUSY, FAILED, Answer
from .connection import Connection
from .faults import Faults


class Gate:
    """Where requests wait while a fault holds them, and where it ends them."""

    def __init__(self, faults: Callable[[], Faults]) -> None:
        self.faults = faults
        self._changed = asyncio.Event()

    def faults_changed(self) -> None:
        """Whoever hangs looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def hang(self, *names: str) -> None:
        """Wait as long as one of the faults is on."""
        while any(getattr(self.faults(), name) for name in names):
            await self._changed.wait()

    def stops(self, connection: Connection, error: Callable[[int, str], Answer]) -> bool | None:
        """End a request as the faults want it now, and tell whether it succeeded; None: it may go on."""
        now = self.faults()
        if now.reset_before_head or now.close_before_head:
            connection.abort(reset=now.reset_before_head)
            return False
        for status in now.interim:
            connection.write(b"HTTP/1.1 %d Interim\r\nX-Interim: yes\r\n\r\n" % status)
        if now.answer is not None:
            connection.answer(now.answer)
            return now.answer.status < 400
        if now.status is not None:
            connection.answer(error(now.status, BUSY if now.status == 503 else FAILED))
            return now.status < 400
        return None
