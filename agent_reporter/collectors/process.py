"""The Ollama server's process, and of its environment Ollama's own settings.

The system shows them to the server's own user and to root. Where it does not, they are not known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

import psutil

NAMES = frozenset(("ollama", "ollama.exe"))

PREFIX = "OLLAMA_"

LOOK_AGAIN = 60.0
"""Seconds after which a server that was not found is looked for again: a look costs some milliseconds of CPU."""


class ServerProcess:
    """Found once, and again when it has ended. `clock` gives monotonic seconds."""

    def __init__(
        self,
        processes: Callable[[], Iterable[psutil.Process]] = psutil.process_iter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processes = processes
        self._clock = clock
        self._process: psutil.Process | None = None
        self._settings: Mapping[str, str] = {}
        self._looked: float | None = None

    async def settings(self) -> Mapping[str, str]:
        """Its OLLAMA_ variables; none where it is not found or they may not be read."""
        if self._process is not None and not self._process.is_running():
            self._process, self._settings, self._looked = None, {}, None
        if self._process is None and (self._looked is None or self._clock() - self._looked >= LOOK_AGAIN):
            self._looked = self._clock()
            await asyncio.to_thread(self._find)
        return self._settings

    def _find(self) -> None:
        for process in self._processes():
            try:
                if process.name().lower() not in NAMES or "serve" not in process.cmdline()[1:2]:
                    continue
            except (psutil.Error, OSError):
                continue  # it is another user's, or gone
            self._process, self._settings = process, _settings_of(process)
            return


def _settings_of(process: psutil.Process) -> Mapping[str, str]:
    try:
        environment = process.environ()
    except (psutil.Error, OSError):
        return {}
    return {name: value for name, value in environment.items() if name.startswith(PREFIX)}
