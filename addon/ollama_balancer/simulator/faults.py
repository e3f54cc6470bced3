"""Faults of a simulated host, switchable at run time, and the gate that applies them to a request before its answer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .answers import BUSY, FAILED, Answer
from .connection import Connection

Strike = Literal["cut", "end", "error"]


@dataclass
class Faults:
    """The faults of one host, all off by default. A change takes effect at once.

    All but `refuse`, `hang` and `hang_all` concern inference requests that are well formed and name a known model, and
    requests that manage models (pull, push, create, copy, delete and blobs). Counts are chunks of generated text or
    lines of progress: 0 strikes after the head, and one beyond the answer's length strikes instead of the end.
    """

    refuse: bool = False
    """The listener is closed; connections already open go on."""
    hang: bool = False
    """Inference is accepted and not answered, as by a frozen runner, until this is switched off; the rest answers."""
    hang_all: bool = False
    """Nothing is answered until this is switched off."""
    status: int | None = None
    """The answer is this HTTP status and a JSON error."""
    answer: Answer | None = None
    """The answer is this one, as it is: what another version, a proxy or another server would say."""
    interim: tuple[int, ...] = ()
    """Interim answers (1xx) that come before each answer that counts."""
    reset_before_head: bool = False
    """The connection is reset (TCP RST) instead of an answer."""
    close_before_head: bool = False
    """The connection is closed (TCP FIN) instead of an answer."""
    cut_after_chunks: int | None = None
    """The connection is aborted in mid-stream, or instead of an answer that isn't streamed but takes time."""
    end_without_done_after_chunks: int | None = None
    """A stream ends cleanly and without its terminal event."""
    error_event_after_chunks: int | None = None
    """A stream ends with the event of a crashed runner; before the first chunk, or not streamed, it is a 500."""
    slow_factor: float = 1.0
    """Loading, prefill and decoding take this many times as long."""

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        watcher: Callable[[], None] | None = self.__dict__.get("_watcher")
        if watcher is not None:
            watcher()

    def watch(self, watcher: Callable[[], None] | None) -> None:
        """Call `watcher` after each change from now on; None: nobody."""
        object.__setattr__(self, "_watcher", watcher)

    def strike(self, sent: int, *, at_end: bool = False) -> Strike | None:
        """The fault that ends a stream after `sent` chunks (`at_end`: where its terminal event would come), if any."""
        if self.cut_after_chunks is not None and (at_end or sent >= self.cut_after_chunks):
            return "cut"
        if self.end_without_done_after_chunks is not None and (at_end or sent >= self.end_without_done_after_chunks):
            return "end"
        if self.error_event_after_chunks is not None and (at_end or sent >= self.error_event_after_chunks):
            return "error"
        return None


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
