"""Writes the audit file, in a thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..gateway.audit import AuditTrail
from ..storage import audit
from .access_log import log_in_loop

logger = logging.getLogger(__name__)


class AuditFile:
    """The file of what `trail` hears of. An entry that cannot be written is logged, and what it is about goes on."""

    def __init__(self, trail: AuditTrail) -> None:
        self._file: audit.AuditFile | None = None
        self._thread = ThreadPoolExecutor(1, "audit")
        trail.write = self._write

    def open(self, folder: Path) -> None:
        """Write to that folder's from now on."""
        self._file = audit.AuditFile(folder)

    def _write(self, entry: Mapping[str, object]) -> None:
        if self._file is not None:
            # Python waits for the thread when it ends, so that nothing is lost.
            self._thread.submit(_append, self._file, entry, log_in_loop(logger))


def _append(file: audit.AuditFile, entry: Mapping[str, object], report: Callable[[str], None]) -> None:
    try:
        file.append(entry)
    except Exception as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or e
        report(f"The audit file {file.path} cannot be written ({reason}): {entry['what']} is missing in it.")
