"""Restores and saves the registered agents, the history of the last day, the last events and what was learned."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..core.agent import Source
from ..core.events import EventKind, Events
from ..core.history import History
from ..core.knowledge import AgentRecord, latest
from ..core.registry import AgentRegistry
from .agents import FILE_NAME as STATE_FILE
from .agents import StateFile
from .events import FILE_NAME as EVENTS_FILE
from .events import EventFile
from .history import FILE_NAME as HISTORY_FILE
from .history import HistoryFile, closed_minutes
from .learned import FILE_NAME as LEARNED_FILE
from .learned import LearnedFile, Record

logger = logging.getLogger(__name__)

STORE_SECONDS = 0.5
"""Seconds for which changes are collected before they are written."""

RETRY_SECONDS = 10.0
"""Seconds before a failed write is retried."""

EVENTS_SECONDS = 2.0
"""Seconds for which events are collected before they are written."""

HISTORY_SECONDS = 5.0
"""Seconds between checks for completed minutes."""


LEARNED_SECONDS = 300.0
"""Seconds between two times that what was learned is written."""

AT_ONCE = 4
"""Agents whose records are read or made before others have their turn."""


class Persistence:
    """The files in `folder` for `registry`, `history` and `events`; `wall` gives seconds since the epoch."""

    def __init__(
        self,
        folder: Path,
        registry: AgentRegistry,
        history: History,
        events: Events,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._history = history
        self._events = events
        self._event_file = EventFile(folder / EVENTS_FILE)
        self._saved_events = -1
        """The revision of the events that is in the file; -1 before it has been read."""
        self._state = StateFile(folder / STATE_FILE)
        self._history_file = HistoryFile(folder / HISTORY_FILE)
        self._history_loaded = False
        """Whether the file has been loaded into the history."""
        self._last_stored_minute = 0
        """The last minute in the file."""
        self._wall = wall
        self._learned_file = LearnedFile(folder / LEARNED_FILE)
        self._learned_restored = False
        """Whether the file has been read."""

    def restore_agents(self) -> None:
        count = self._state.restore(self._registry)
        if count:
            logger.info("Restored %d registered agent%s.", count, "" if count == 1 else "s")

    async def restore_learned(self) -> None:
        """Take in what was known of the agents, also of those that are yet to join."""
        knowledge = self._registry.knowledge
        for number, record in enumerate(await asyncio.to_thread(self._learned_file.read)):
            if isinstance(record, AgentRecord):
                knowledge.restore(record, self._wall())
            else:
                knowledge.restore_output(record, self._wall())
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        self._learned_restored = True

    async def begin_events(self, about: str) -> None:
        """Load the events, and add the start: `about` it. Changes of agents are events from now on."""
        earlier = await asyncio.to_thread(self._event_file.read)
        self._events.restore(earlier)
        self._saved_events = 0
        if earlier and earlier[-1].kind is not EventKind.STOPPED:
            about += "; it had ended without being stopped"
        self._events.add(EventKind.STARTED, about)
        self._registry.fleet.on_event = self._events.agent_changed

    async def persist_events(self) -> None:
        """Save the events after each change, until cancelled."""
        while True:
            await asyncio.sleep(EVENTS_SECONDS)
            revision = self._events.revision
            if revision == self._saved_events:
                continue
            if await asyncio.to_thread(self._event_file.save, list(self._events)):
                self._saved_events = revision
            else:
                await asyncio.sleep(RETRY_SECONDS)

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

    async def persist_learned(self) -> None:
        """Save what was learned from time to time, until cancelled."""
        while True:
            await asyncio.sleep(LEARNED_SECONDS)
            records = []
            for number, record in enumerate(self._learned()):
                records.append(record)
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)
            await asyncio.to_thread(self._save_learned, records)

    def _learned(self) -> Iterator[Record | None]:
        """What is known of each agent and of answers, of simulated ones nothing."""
        registry, now = self._registry, self._wall()
        simulated = {agent.id for agent in registry if agent.source is Source.DEMO}
        for agent_id in registry.knowledge.agents():
            yield None if agent_id in simulated else registry.knowledge.record(agent_id, now)
        if not simulated:
            yield from registry.knowledge.outputs(now)

    def _save_learned(self, records: list[Record | None]) -> bool:
        agents = [record for record in records if isinstance(record, AgentRecord)]
        others = [record for record in records if record is not None and not isinstance(record, AgentRecord)]
        return self._learned_file.save([*others, *latest(agents)])

    def save(self) -> None:
        """Save everything at shutdown."""
        self._state.save(self._state.snapshot(self._registry))
        if self._learned_restored:
            self._save_learned(list(self._learned()))
        if self._history_loaded:
            self._history_file.append(closed_minutes(self._history, self._last_stored_minute, with_running=True))
        if self._saved_events >= 0:
            self._events.add(EventKind.STOPPED)
            self._event_file.save(list(self._events))
