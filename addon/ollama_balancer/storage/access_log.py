"""Writes the access log: a JSON object a line, by a thread of its own, so that no request waits for the disk."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from ..text import rfc3339
from .files import open_own, write_whole

STANDARD_OUTPUT = "-"

MAX_BYTES = 64 * 1024 * 1024
"""Size of the file beyond which the next one is begun."""

KEPT = 5
"""Older files kept beside it, as PATH.1 (the newest) to PATH.5."""

MAX_WAITING = 20_000
"""Lines that wait to be written; more are dropped."""

LINES_AT_ONCE = 1000

WRITE_SECONDS = 0.2
"""Seconds between two writes."""

QUIET_SECONDS = 60.0
"""Seconds after a problem was reported in which others are not."""


class AccessLog:
    """`target` is a path, or - for standard output. `report` is called in the thread with what goes wrong.

    OSError: the file cannot be written.
    """

    def __init__(
        self,
        target: str,
        report: Callable[[str], None],
        *,
        max_bytes: int = MAX_BYTES,
        kept: int = KEPT,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.target = target
        self.dropped = 0
        """Lines that were never written."""
        self._path = None if target == STANDARD_OUTPUT else Path(target).expanduser()
        self._report = report
        self._max_bytes = max_bytes
        self._kept = kept
        self._max_waiting = max_waiting
        self._waiting: collections.deque[Mapping[str, object]] = collections.deque()
        self._overflowed = 0
        """Lines for which there was no room; those of them that the thread knows of are in `dropped`."""
        self._overflow_seen = 0
        self._unreported = 0
        """Dropped lines that the log does not tell of yet."""
        self._reported_at = float("-inf")
        self._file: BinaryIO | FileIO | None = self._open()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def add(self, entry: Mapping[str, object]) -> None:
        """Have a line written. `time` is in seconds since 1970, and written as RFC 3339."""
        if len(self._waiting) < self._max_waiting:
            self._waiting.append(entry)
        else:
            self._overflowed += 1

    def close(self, seconds: float = 2.0) -> None:
        """Write what waits, if that takes no longer than that."""
        self._stopping.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(WRITE_SECONDS)
            try:
                self._write_waiting()
            except Exception as e:
                self._drop(1, f"{type(e).__name__}: {e}")
        self._close()

    def _write_waiting(self) -> None:
        more = True
        while more:
            lines = [line_of(self._waiting.popleft()) for _ in range(min(len(self._waiting), LINES_AT_ONCE))]
            more = bool(self._waiting)
            overflowed = self._overflowed - self._overflow_seen
            if overflowed:
                self._overflow_seen += overflowed
                self._drop(overflowed, "more lines came than could be written")
            if not lines:
                return
            notice = [line_of({"time": time.time(), "dropped": self._unreported})] if self._unreported else []
            try:
                self._write(b"".join([*notice, *lines]))
                self._unreported = 0
            except OSError as e:
                self._close()
                self._drop(len(lines), f"it cannot be written ({e.strerror or e})")

    def _drop(self, lines: int, reason: str) -> None:
        self.dropped += lines
        self._unreported += lines
        now = time.monotonic()
        if now - self._reported_at >= QUIET_SECONDS:
            self._report(f"balancer_access_log: lines are lost: {reason}; {self.dropped} until now. Requests go on.")
            self._reported_at = now

    def _write(self, data: bytes) -> None:
        write_whole(self._current(len(data)).fileno(), data)

    def _current(self, size: int) -> BinaryIO | FileIO:
        """The file to write to: a new one if that one is full, or somebody has moved it."""
        if self._path is None or self._file is None:
            self._file = self._file or self._open()
            return self._file
        opened = os.fstat(self._file.fileno())
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            named = None
        moved = named is None or (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino)
        if not moved and not (opened.st_size and opened.st_size + size > self._max_bytes):
            return self._file
        self._close()
        if not moved:
            self._rotate(self._path)
        self._file = self._open()
        return self._file

    def _rotate(self, path: Path) -> None:
        for number in range(self._kept, 0, -1):
            older = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, path.with_name(f"{path.name}.{number}"))

    def _open(self) -> BinaryIO | FileIO:
        if self._path is None:
            return FileIO(os.dup(1), "wb")
        return open_own(self._path, append=True)

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def line_of(entry: Mapping[str, object]) -> bytes:
    at = entry.get("time")
    if isinstance(at, float):
        entry = {**entry, "time": rfc3339(at)}
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"
