"""Asks the agents that have no reporter, or whose reporter is silent, whether they are there and what they have.

Those that are online and those that are not have rounds of their own: thousands that are dead, each of which takes the
whole of a time-out, keep no probe of a live one waiting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent_reporter import wire
from agent_reporter.http import Answer, CallError, ConnectError, LateError, call
from agent_reporter.wire import ModelEntry, check_size

from .descriptors import is_ours
from .fleet.agent import Address, Agent, Source
from .fleet.registry import PROBE_GRACE, AgentRegistry
from .locating import Locator
from .ollama.errors import not_let_in
from .ollama.names import canonical_name
from .reaching import cannot_connect

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
MAX_ANSWER_BYTES = 1024 * 1024
"""Of a list: a host that has MAX_MODELS lists them in that."""

AT_ONCE = 256
LOCAL = Address("127.0.0.1", 11434)


class Version(BaseModel):
    version: str = Field(max_length=256)


class Models(BaseModel):
    model_config = ConfigDict(extra="ignore")

    models: wire.Models | None = None


def _models(body: bytes) -> list[ModelEntry]:
    """What a list says. ValueError: it is none, or a larger one than is read."""
    return Models.model_validate_json(check_size(body)).models or []


class StatusError(ValueError):
    """An answer with another status than 200."""

    def __init__(self, path: str, status: int) -> None:
        super().__init__(f"GET {path} is answered with status {status}")
        self.status = status


def explain(address: Address, error: Exception) -> str:
    """Why a probe of that address failed, and what is to be done about it."""
    match error:
        case ConnectError() | LateError(connected=False):
            return cannot_connect(address, str(error))
        case LateError():
            return f"{address} takes connections and does not answer GET /api/version ({error}); restart Ollama there"
        case StatusError(status=508):
            what = "is the balancer itself, or leads back to it"
        case StatusError(status=401 | 403):
            return f"{address}, or a proxy in front of it, does not let the balancer in: {error}"
        case StatusError():
            what = f"is no Ollama, or not well: {error}"
        case ValidationError():
            what = "does not answer GET /api/version as Ollama does"
        case _:
            what = f"does not answer GET /api/version ({error})"
    return f"{address} {what}; name the host and port on which Ollama listens"


class Prober:
    """Probes in rounds. `via` names the balancer, which does not answer itself.

    `first_round` is set when the agents known at the start have been asked; several times where none answered in time.
    """

    def __init__(self, registry: AgentRegistry, *, take_in_local: Callable[[], bool], via: str) -> None:
        self.registry = registry
        self.via = via
        self.take_in_local = take_in_local
        self.first_round = asyncio.Event()
        self._wakes = (asyncio.Event(), asyncio.Event())
        self._has_begun = False
        self._locator = Locator(registry)
        self._asked: set[tuple[Agent, Address]] = set()
        """Who is asked at this moment."""

    def wake(self) -> None:
        """Begin the next rounds now."""
        for event in self._wakes:
            event.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        self._has_begun = True
        async with asyncio.TaskGroup() as group:
            for online, wake in zip((True, False), self._wakes, strict=True):
                group.create_task(self._keep_asking(online, wake))

    async def _keep_asking(self, online: bool, wake: asyncio.Event) -> None:
        tries = FIRST_TRIES
        while True:
            wake.clear()
            answered = True
            try:
                answered = await self.round(online)
            except Exception:
                logger.exception("A round of probes failed; the next one is in %g s.", INTERVAL)
            if not online:
                tries -= 1
                if tries > 0 and not answered and not self.registry.any_online:
                    continue  # a host that was too slow once must not fail the first requests
                self.first_round.set()
            try:
                async with asyncio.timeout(INTERVAL):
                    await wake.wait()
            except TimeoutError:
                pass

    async def round(self, online: bool) -> bool:
        """Ask those that are to be asked, of those that are online or of the others; False if one did not answer in
        time.
        """
        if not online and self.take_in_local() and len(self.registry) == 0 and await self._answers(LOCAL):
            self.registry.register("local", LOCAL, Source.LOCAL)
            logger.info("An Ollama answers on %s: taken in as agent local.", LOCAL)
        at_once = asyncio.Semaphore(AT_ONCE)

        async def probe(agent: Agent) -> bool:
            async with at_once:
                return await self.probe(agent)

        probes = []
        async with asyncio.TaskGroup() as group:
            for agent in [a for a in self.registry if a.online is online and self.registry.wants_probe(a)]:
                probes.append(group.create_task(probe(agent)))
                await asyncio.sleep(0)  # a thousand that are begun at once would hold up everybody's streams
        return all(task.result() for task in probes)

    async def probe(self, agent: Agent) -> bool:
        """Ask one agent; False if it did not answer in time.

        What it answers is not trusted: sizes and types are checked, a bad answer is no answer.
        """
        asked = (agent, agent.address)
        self._asked.add(asked)
        try:
            return await self._ask(agent, agent.address)
        finally:
            self._asked.discard(asked)

    async def _ask(self, agent: Agent, address: Address) -> bool:
        try:
            answer = await self._get(address, "/api/version", ALIVE_TIMEOUT)
            version = Version.model_validate_json(answer.body).version
        except ConnectError as e:
            if is_ours(e):
                if agent.online:
                    self.registry.reached(agent)  # nothing is known of it; it is not to blame for that
            elif agent.address == address:
                self.registry.unreachable(agent, explain(address, e))
            return True
        except (CallError, ValueError) as e:
            logger.debug("Agent %s (%s) does not answer: %r", agent.name, address, e)
            if agent.address != address:
                return False
            late = isinstance(e, LateError)
            if isinstance(e, StatusError) and e.status in (401, 403):
                self.registry.refuses(agent, not_let_in(e.status), PROBE_GRACE)
                return True
            # On a machine that is busy with its answers, these tell that it is still there.
            if late and agent.online and self.registry.clock() - agent.heard_at <= HEARD_SECONDS:
                self.registry.reached(agent)
                return True
            reason = explain(address, e)
            self.registry.silent(agent, reason)
            if isinstance(e, StatusError) and e.status in (401, 403):
                self.registry.refuses(agent, reason)
            return not late
        await self._list(agent, address)
        await self._locator.locate(agent, address, answer.peer)
        if agent.address == address:
            self.registry.update_version(agent, version)
            self.registry.reached(agent)
        return True

    async def look_at(self, agent: Agent) -> None:
        """Ask one agent now, that is new, has moved or begins to report, if the rounds have begun; else they will."""
        if self._has_begun and (agent, agent.address) not in self._asked:
            await self.probe(agent)

    async def refresh(self, agent: Agent) -> None:
        """See at once what models an agent has, after something has changed there."""
        await self._list(agent, agent.address)

    async def refresh_memory(self, agent: Agent, *, unloading: str | None = None, last: bool = True) -> bool:
        """See at once what an agent has in memory; False if it is still to unload that model (a canonical name).

        Then what it says is stored only if this is the last look.
        """
        address, began = agent.address, self.registry.clock()
        entries = await self._running(address)
        if entries is None or agent.address != address or agent.removed:
            return True
        if unloading is not None and any(canonical_name(entry.name) == unloading for entry in entries) and not last:
            return False
        self.registry.update_loaded(agent, entries, began)
        if unloading is not None and unloading not in agent.listed:
            self.registry.unloaded(agent, unloading)
        return True

    async def loaded(self, agent: Agent) -> set[str] | None:
        """The canonical names of the models that the agent has in memory; None if it does not answer."""
        entries = await self._running(agent.address)
        return None if entries is None else {canonical_name(entry.name) for entry in entries}

    async def _running(self, address: Address) -> list[ModelEntry] | None:
        try:
            return _models((await self._get(address, "/api/ps", ALIVE_TIMEOUT)).body)
        except (CallError, ValueError):
            return None

    async def _list(self, agent: Agent, address: Address) -> None:
        began = self.registry.clock()
        try:
            models = _models((await self._get(address, "/api/tags", INVENTORY_TIMEOUT)).body)
            loaded = _models((await self._get(address, "/api/ps", INVENTORY_TIMEOUT)).body)
        except (CallError, ValueError) as e:
            logger.debug("Agent %s (%s) does not list its models: %r", agent.name, address, e)
            return
        if agent.address == address:
            self.registry.update_loaded(agent, loaded, began)
            self.registry.update_models(agent, models)

    async def _answers(self, address: Address) -> bool:
        try:
            Version.model_validate_json((await self._get(address, "/api/version", ALIVE_TIMEOUT)).body)
        except (CallError, ValueError):
            return False
        return True

    async def _get(self, address: Address, path: str, seconds: float) -> Answer:
        """A 200 answer; ValueError for another status, CallError else."""
        headers = {"Via": self.via, "User-Agent": "ollama-balancer"}
        answer = await call("GET", address.url + path, timeout=seconds, limit=MAX_ANSWER_BYTES, headers=headers)
        if answer.status != 200:
            raise StatusError(path, answer.status)
        return answer
