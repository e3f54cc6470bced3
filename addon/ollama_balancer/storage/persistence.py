"""What is known again after a restart: who has registered, and the history of the last day."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from ..core.history import History
from ..core.registry import AgentRegistry
from .agents import FILE_NAME as STATE_FILE
from .agents import StateFile
from .history import FILE_NAME as HISTORY_FILE
from .history import HistoryFile, closed_minutes

logger = logging.getLogger(__name__)

STORE_SECONDS = 0.5
"""How long changes of the registered agents are gathered before they are written down."""

RETRY_SECONDS = 10.0
"""Until the disk is tried again."""

HISTORY_SECONDS = 5.0
"""Between two looks whether a minute is over that is to be written down."""


class Persistence:
    """The files in `folder`, for what is in `registry` and `history`."""

    def __init__(self, folder: Path, registry: AgentRegistry, history: History) -> None:
        self._registry = registry
        self._history = history
        self._state = StateFile(folder / STATE_FILE)
        self._history_file = HistoryFile(folder / HISTORY_FILE)
        self._history_loaded = False
        """Whether what the file has is in the history."""
        self._last_stored_minute = 0
        """The last minute that the file has."""

    def restore_agents(self) -> None:
        count = self._state.restore(self._registry)
        if count:
            logger.info("Restored %d registered agents.", count)

    async def persist_agents(self) -> None:
        """Write down who has registered whenever that has changed, until cancelled."""
        stored = -1
        while True:
            await asyncio.sleep(STORE_SECONDS)
            revision = self._registry.revision
            if revision == stored:
                continue
            if await asyncio.to_thread(self._state.save, self._state.snapshot(self._registry)):
                stored = revision
            else:
                await asyncio.sleep(RETRY_SECONDS)

    async def persist_history(self) -> None:
        """Take in what the file has, and write down each minute that is over, until cancelled."""
        for line in await asyncio.to_thread(self._history_file.read):
            for agent, model, values in line.rows:
                self._history.put(line.minute, (agent, model), values)
            self._last_stored_minute = max(self._last_stored_minute, min(line.minute, self._history.now - 1))
            await asyncio.sleep(0)
        self._history_loaded = True
        while True:
            await asyncio.sleep(HISTORY_SECONDS)
            lines = closed_minutes(self._history, self._last_stored_minute)
            if not lines:
                continue
            if await asyncio.to_thread(self._history_file.append, lines):
                self._last_stored_minute = lines[-1].minute

    def save(self) -> None:
        """Write all of it down now: it is the end."""
        self._state.save(self._state.snapshot(self._registry))
        if self._history_loaded:
            self._history_file.append(closed_minutes(self._history, self._last_stored_minute, with_running=True))
