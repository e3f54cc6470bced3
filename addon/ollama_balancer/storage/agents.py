"""The state file with the registered agents."""

import json
import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.address import Address
from ..core.agent import Agent, Source
from ..core.registry import MAX_AGENTS, AgentRegistry
from .files import open_own, replace

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


class StateFile:
    """`path` is the file's; the folder is made if need be. `save` may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._snapshots = 0
        self._newest = 0
        """The number of the newest snapshot that was written."""
        self._written: str | None = None
        """The content of the file, if known."""
        self._failed = False
        self._protected = False
        """Whether the file could not be read and must not be overwritten."""

    def restore(self, registry: AgentRegistry) -> int:
        """Register the agents of the file; returns how many. A damaged file is renamed."""
        try:
            with open_own(self.path) as file:
                content = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return 0
        except OSError as e:
            logger.warning(
                "The registered agents cannot be read from %s (%s). Their reporters will register again; agents "
                "without a reporter are missing, and changes are not saved. Make the file readable and restart.",
                self.path,
                e.strerror or e,
            )
            self._protected = True
            return 0
        try:
            if len(content) > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES} bytes")
            stored = Stored.model_validate_json(content).agents
            addresses = [Address.parse(agent.url) for agent in stored]
        except ValueError as e:
            self._set_aside(_reason(e))
            return 0
        restored = 0
        for entry, address in zip(stored, addresses, strict=True):
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
            if self._protected or snapshot.number < self._newest:
                return True
            self._newest = snapshot.number
            text = str(snapshot)
            if text == self._written or (self._written is None and not snapshot.agents and not self.path.exists()):
                return True
            return self._write(text)

    def _write(self, text: str) -> bool:
        """Replace the file atomically. A failure is logged once."""
        try:
            replace(self.path, text)
        except OSError as e:
            if not self._failed:
                logger.warning(
                    "The registered agents cannot be saved to %s (%s): after a restart they have to register again. "
                    "Trying again.",
                    self.path,
                    e.strerror or e,
                )
            self._failed = True
            return False
        if self._failed:
            logger.info("The registered agents are saved to %s again.", self.path)
        self._written, self._failed = text, False
        return True

    def _set_aside(self, reason: str) -> None:
        damaged = self.path.with_name(self.path.name + ".damaged")
        try:
            os.replace(self.path, damaged)
            where = f"it was renamed to {damaged}"
        except OSError as e:
            self._protected = True
            where = f"it could not be renamed ({e.strerror or e}), so changes are not saved"
        logger.warning(
            "%s is not a valid list of registered agents: %s; %s, and the fleet starts without them.",
            self.path,
            reason,
            where,
        )


def _end_of_drain(agent: Agent) -> str | None:
    if not agent.draining or agent.drained_by_configuration:
        return None
    return "registration" if agent.draining_until_registration else "resume"


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else first["msg"]
    return str(error)
