"""Applies faults to a request before it is answered."""

import asyncio
from collections.abc import Callable

from .answers import BUSY, FAILED, Answer
from .connection import Connection
from .faults import Faults


class Gate:
    """Holds or ends requests as the faults demand."""

    def __init__(self, faults: Callable[[], Faults]) -> None:
        self.faults = faults
        self._changed = asyncio.Event()

    def faults_changed(self) -> None:
        """Let held requests check the faults again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def hang(self, *names: str) -> None:
        """Wait as long as one of the faults is on."""
        while any(getattr(self.faults(), name) for name in names):
            await self._changed.wait()

    def intercept(self, connection: Connection, error: Callable[[int, str], Answer]) -> bool | None:
        """Apply a fault to the request; returns whether it succeeded, None if it goes on."""
        faults_now = self.faults()
        if faults_now.reset_before_head or faults_now.close_before_head:
            connection.abort(reset=faults_now.reset_before_head)
            return False
        for status in faults_now.interim:
            connection.write(b"HTTP/1.1 %d Interim\r\nX-Interim: yes\r\n\r\n" % status)
        if faults_now.answer is not None:
            connection.answer(faults_now.answer)
            return faults_now.answer.status < 400
        if faults_now.status is not None:
            connection.answer(error(faults_now.status, BUSY if faults_now.status == 503 else FAILED))
            return faults_now.status < 400
        return None
