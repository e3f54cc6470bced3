"""The audit file: what operators changed and which credentials were refused, a chain of lines (see `core.audit`).

The balancer and the command line append to it at the same time: whoever holds the lock file beside it may.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from ..core.audit import FIRST, MAX_LINE, Verdict, chained, hash_of, verify
from .files import open_own, write_whole

FILE_NAME = "ollama-balancer-audit.jsonl"
LOCK_NAME = "ollama-balancer-audit.lock"

LOCK_SECONDS = 5.0
"""Seconds to wait for another process."""


class AuditFile:
    """Its methods raise OSError. They read and write the disk, and may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._lock_path = folder / LOCK_NAME

    def append(self, entry: Mapping[str, object]) -> str:
        """Append the entry to the chain, and return the hash of its line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open_own(self._lock_path, append=True) as lock, _locked(lock), open_own(self.path, append=True) as file:
            size = os.fstat(file.fileno()).st_size
            last, end = self._last_line(size)
            line = chained(entry, last)
            if len(line) >= MAX_LINE:
                raise OSError(f"an entry of {len(line)} bytes is too long")
            write_whole(file.fileno(), end + line + b"\n")
            os.fsync(file.fileno())
        return hash_of(line)

    def verify(self, known: str = "") -> Verdict:
        """Follow the chain to its end."""
        with open_own(self.path) as file:
            return verify(iter(lambda: file.readline(MAX_LINE), b""), known)

    def _last_line(self, size: int) -> tuple[str, bytes]:
        """The hash of the last line, and what it lacks: its end, if somebody has cut it."""
        if not size:
            return FIRST, b""
        with open_own(self.path) as file:
            file.seek(max(0, size - MAX_LINE))
            data = file.read()
        missing = b"" if data.endswith(b"\n") else b"\n"
        return hash_of((data + missing)[:-1].rpartition(b"\n")[2]), missing


@contextlib.contextmanager
def _locked(file: BinaryIO) -> Iterator[None]:
    deadline = time.monotonic() + LOCK_SECONDS
    while not _try_lock(file):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"another process has held its lock for {LOCK_SECONDS:g} s")
        time.sleep(0.01)
    try:
        yield
    finally:
        _unlock(file)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: BinaryIO) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: BinaryIO) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(file: BinaryIO) -> bool:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(file: BinaryIO) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
