"""Restores and saves the registered agents and the history of the last day."""

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
"""Seconds for which changes are collected before they are written."""

RETRY_SECONDS = 10.0
"""Seconds before a failed write is retried."""

HISTORY_SECONDS = 5.0
"""Seconds between checks for completed minutes."""


class Persistence:
    """The files in `folder` for `registry` and `history`."""

    def __init__(self, folder: Path, registry: AgentRegistry, history: History) -> None:
        self._registry = registry
        self._history = history
        self._state = StateFile(folder / STATE_FILE)
        self._history_file = HistoryFile(folder / HISTORY_FILE)
        self._history_loaded = False
        """Whether the file has been loaded into the history."""
        self._last_stored_minute = 0
        """The last minute in the file."""

    def restore_agents(self) -> None:
        count = self._state.restore(self._registry)
        if count:
            logger.info("Restored %d registered agents.", count)

    async def persist_agents(self) -> None:
        """Save the registered agents after each change, until cancelled."""
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
        """Load the history, then append each completed minute, until cancelled."""
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
        """Save everything at shutdown."""
        self._state.save(self._state.snapshot(self._registry))
        if self._history_loaded:
            self._history_file.append(closed_minutes(self._history, self._last_stored_minute, with_running=True))
