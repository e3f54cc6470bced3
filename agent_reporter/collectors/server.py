"""The server's own settings: how many requests it runs at once, and how many models it holds.

They are in the environment of its process, which the system shows to its own user and to root. Elsewhere the balancer
learns them from what it sees. Of the environment nothing else is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

import psutil

from .base import Fields, Host

SETTINGS = {"OLLAMA_NUM_PARALLEL": "num_parallel", "OLLAMA_MAX_LOADED_MODELS": "max_loaded_models"}
NAMES = frozenset(("ollama", "ollama.exe"))
MOST = 100_000
"""What a report may say."""


class ServerCollector:
    """Gives `num_parallel` and `max_loaded_models`, where they are set and may be read."""

    def __init__(self, host: Host, processes: Callable[[], Iterable[psutil.Process]] = psutil.process_iter) -> None:
        del host
        self._processes = processes
        self._server: psutil.Process | None = None
        self._fields: Fields = {}

    async def collect(self) -> Fields:
        if self._server is None or not self._server.is_running():
            self._server, self._fields = None, {}
            await asyncio.to_thread(self._find)
        return self._fields

    def _find(self) -> None:
        for process in self._processes():
            try:
                if process.name().lower() in NAMES and "serve" in process.cmdline()[1:2]:
                    self._fields = parse(process.environ())
                    self._server = process
                    return
            except (psutil.Error, OSError):
                continue  # it is another user's, or gone


def parse(environment: Mapping[str, str]) -> Fields:
    """The settings that are numbers above 0: 0 means that the server decides."""
    fields = {}
    for variable, name in SETTINGS.items():
        text = environment.get(variable, "").strip()
        if text.isascii() and text.isdecimal() and len(text) <= 6 and 0 < int(text) <= MOST:
            fields[name] = int(text)
    return fields
