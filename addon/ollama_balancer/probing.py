"""Asks the agents that have no reporter, or whose reporter is silent, whether they are there and what they have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from agent_reporter.http import CallError, ConnectError, LateError, call
from agent_reporter.wire import ModelEntry

from .fleet.agent import Address, Agent, Source
from .fleet.registry import AgentRegistry
from .ollama.names import canonical_name

logger = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between two rounds."""

ALIVE_TIMEOUT = 2.0
"""Seconds for GET /api/version, which a live Ollama answers in a millisecond."""

HEARD_SECONDS = 5.0
"""An agent that is late to answer a probe, but has sent a part of an answer so recently, stays online."""

FIRST_TRIES = 4
"""How often agents that do not answer are asked at the start, one time right after another, as long as none does."""

INVENTORY_TIMEOUT = 5.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024
AT_ONCE = 256
LOCAL = Address("127.0.0.1", 11434)


class Version(BaseModel):
    version: str = Field(max_length=256)


class Models(BaseModel):
    model_config = ConfigDict(extra="ignore")

    models: list[ModelEntry] | None = Field(default=None, max_length=10_000)


class Prober:
    """Probes in rounds. `via` names the balancer, which does not answer itself.

    `first_round` is set when the agents known at the start have been asked; several times where none answered in time.
    """

    def __init__(self, registry: AgentRegistry, *, take_in_local: Callable[[], bool], via: str) -> None:
        self.registry = registry
        self.via = via
        self.take_in_local = take_in_local
        self.first_round = asyncio.Event()
        self._wake = asyncio.Event()
        self._has_begun = False

    def wake(self) -> None:
        """Begin a round now."""
        self._wake.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        tries = FIRST_TRIES
        self._has_begun = True
        while True:
            self._wake.clear()
            told = True
            try:
                told = await self.round()
            except Exception:
                logger.exception("A round of probes failed; the next one is in %g s.", INTERVAL)
            tries -= 1
            if tries > 0 and not told and not self.registry.any_online:
                continue  # a host that was too slow once must not fail the first requests
            self.first_round.set()
            try:
                async with asyncio.timeout(INTERVAL):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def round(self) -> bool:
        """Ask all agents that are to be asked; False if one of them did not answer in time."""
        if self.take_in_local() and len(self.registry) == 0 and await self._answers(LOCAL):
            self.registry.register("local", LOCAL, Source.LOCAL)
            logger.info("An Ollama answers on %s: taken in as agent local.", LOCAL)
        at_once = asyncio.Semaphore(AT_ONCE)

        async def probe(agent: Agent) -> bool:
            async with at_once:
                return await self.probe(agent)

        probes = []
        async with asyncio.TaskGroup() as group:
            for agent in [agent for agent in self.registry if self.registry.wants_probe(agent)]:
                probes.append(group.create_task(probe(agent)))
                await asyncio.sleep(0)  # a thousand that are begun at once would hold up everybody's streams
        return all(task.result() for task in probes)

    async def probe(self, agent: Agent) -> bool:
        """Ask one agent; False if it did not answer in time.

        What it answers is not trusted: sizes and types are checked, a bad answer is no answer.
        """
        address = agent.address
        try:
            version = Version.model_validate_json(await self._get(address, "/api/version", ALIVE_TIMEOUT)).version
        except ConnectError as e:
            if agent.address == address:
                self.registry.unreachable(agent, f"cannot connect: {e}")
            return True
        except (CallError, ValueError) as e:
            logger.debug("Agent %s (%s) does not answer: %r", agent.name, address, e)
            if not isinstance(e, LateError):
                return True
            # On a machine that is busy with its answers, these tell that it is still there.
            silent = self.registry.clock() - agent.heard_at
            if agent.address != address or not agent.online or silent > HEARD_SECONDS:
                return False
            self.registry.reached(agent)
            return True
        await self._list(agent, address)
        if agent.address == address:
            self.registry.update_version(agent, version)
            self.registry.reached(agent)
        return True

    async def look_at(self, agent: Agent) -> None:
        """Ask one agent now, that is new or has moved, if the rounds have begun; else they will."""
        if self._has_begun:
            await self.probe(agent)

    async def refresh(self, agent: Agent) -> None:
        """See at once what models an agent has, after something has changed there."""
        await self._list(agent, agent.address)

    async def refresh_memory(self, agent: Agent) -> None:
        """See at once what an agent has in memory."""
        address = agent.address
        entries = await self._running(address)
        if entries is not None and agent.address == address and not agent.removed:
            self.registry.update_loaded(agent, entries)

    async def loaded(self, agent: Agent) -> set[str] | None:
        """The canonical names of the models that the agent has in memory; None if it does not answer."""
        entries = await self._running(agent.address)
        return None if entries is None else {canonical_name(entry.name) for entry in entries}

    async def _running(self, address: Address) -> list[ModelEntry] | None:
        try:
            return Models.model_validate_json(await self._get(address, "/api/ps", ALIVE_TIMEOUT)).models or []
        except (CallError, ValueError):
            return None

    async def _list(self, agent: Agent, address: Address) -> None:
        try:
            tags = Models.model_validate_json(await self._get(address, "/api/tags", INVENTORY_TIMEOUT))
            loaded = Models.model_validate_json(await self._get(address, "/api/ps", INVENTORY_TIMEOUT))
        except (CallError, ValueError) as e:
            logger.debug("Agent %s (%s) does not list its models: %r", agent.name, address, e)
            return
        if agent.address == address:
            self.registry.update_loaded(agent, loaded.models or [])
            self.registry.update_models(agent, tags.models or [])

    async def _answers(self, address: Address) -> bool:
        try:
            Version.model_validate_json(await self._get(address, "/api/version", ALIVE_TIMEOUT))
        except (CallError, ValueError):
            return False
        return True

    async def _get(self, address: Address, path: str, seconds: float) -> bytes:
        """The body of a 200 answer; ValueError for another status, CallError else."""
        headers = {"Via": self.via, "User-Agent": "ollama-balancer"}
        answer = await call("GET", address.url + path, timeout=seconds, limit=MAX_ANSWER_BYTES, headers=headers)
        if answer.status != 200:
            raise ValueError(f"{path} answered with status {answer.status}")
        return answer.body
