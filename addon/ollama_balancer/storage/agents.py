"""The state file with the registered agents."""

import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..core.address import Address
from ..core.agent import Agent, Source
from ..core.registry import MAX_AGENTS, AgentRegistry
from .whole_file import WholeFile, Words

logger = logging.getLogger(__name__)

FILE_NAME = "ollama-balancer-agents.json"
MAX_BYTES = 64 * 1024 * 1024

MAX_URL = 2100
"""Characters: what may be registered, and a port."""


class StoredAgent(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str = Field(max_length=64)
    url: str = Field(max_length=MAX_URL)
    draining: Literal["resume", "registration"] | None = None
    """What is to end its drain; None: it is not draining."""
    key: str | None = Field(default=None, max_length=64)
    """The client key that reports for it."""


class Stored(BaseModel):
    model_config = ConfigDict(extra="ignore")

    version: Literal[1]
    agents: list[StoredAgent] = Field(max_length=MAX_AGENTS)


@dataclass(frozen=True)
class Snapshot:
    """The registered agents at one moment: name, address, end of the drain and key. Later ones have higher numbers."""

    number: int
    agents: list[tuple[str, Address, str | None, str | None]]

    def __str__(self) -> str:
        lines = []
        for name, address, draining, key in self.agents:
            entry = {"name": name, "url": address.url}
            if draining is not None:
                entry["draining"] = draining
            if key is not None:
                entry["key"] = key
            lines.append(json.dumps(entry))
        return f'{{"version": 1, "agents": [{",".join(f"\n {line}" for line in lines)}\n]}}\n'


WORDS = Words(
    "The registered agents",
    "a valid list of registered agents",
    unreadable="reporters will register again; agents without a reporter are missing, and changes are not saved. Make "
    "the file readable and restart",
    unsaved="after a restart they have to register again",
    anew="the fleet starts without them",
)


class StateFile:
    """`save` may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = WholeFile(path, MAX_BYTES, WORDS)
        self._lock = threading.Lock()
        self._snapshots = 0
        self._newest = 0
        """The number of the newest snapshot that was written."""

    def restore(self, registry: AgentRegistry) -> int:
        """Register the agents of the file; returns how many. A damaged file is renamed."""
        restored = 0
        for entry, address in self._file.read(_parse) or ():
            if registry.get(entry.name) is not None:
                continue
            try:
                agent, _ = registry.register(entry.name, address, Source.REGISTERED, entry.key)
            except ValueError as e:
                logger.warning("Skipped an agent in %s: %s", self.path, e)
                continue
            restored += 1
            if entry.draining is not None:
                registry.drain(agent, until_registration=entry.draining == "registration")
        return restored

    def snapshot(self, agents: Iterable[Agent]) -> Snapshot:
        """Take a snapshot; cheap, since it runs in the event loop."""
        self._snapshots += 1
        return Snapshot(
            self._snapshots,
            [
                (
                    agent.name,
                    agent.address,
                    _end_of_drain(agent),
                    agent.key,
                )
                for agent in agents
                if agent.source is Source.REGISTERED
            ],
        )

    def save(self, snapshot: Snapshot) -> bool:
        """Write the snapshot unless a newer one was written; False if that failed."""
        with self._lock:
            if snapshot.number < self._newest:
                return True
            self._newest = snapshot.number
            return self._file.write(str(snapshot), empty=not snapshot.agents)


def _parse(content: bytes) -> list[tuple[StoredAgent, Address]]:
    return [(agent, Address.parse(agent.url)) for agent in Stored.model_validate_json(content).agents]


def _end_of_drain(agent: Agent) -> str | None:
    if not agent.draining or agent.drained_by_configuration:
        return None
    return "registration" if agent.draining_until_registration else "resume"
