"""Probes agents without a reporter or with a silent one.

Each agent has its own schedule, and there are separate lanes for online agents, for silent ones, whose probes take a
whole timeout, and for new ones. So thousands of silent agents do not delay the probes of the others and use no more
connections than their lane allows. Agents that stay silent are probed less often.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent_reporter import wire
from agent_reporter.http import Answer, CallError, CallTimeoutError, ConnectError, call
from agent_reporter.wire import ModelEntry, check_size

from ..core.address import Address
from ..core.agent import Agent, Source
from ..core.liveness import PROBE_GRACE
from ..core.preloading import UNLOAD_TIMEOUT
from ..core.registry import AgentRegistry
from ..gateway.descriptors import is_local_failure
from ..gateway.reachability import connection_problem
from ..ollama.errors import not_let_in
from ..ollama.names import canonical_name
from .local import Locator

logger = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds from one probe of an agent to the next."""

MAX_BACKOFF = 2
"""Factor on the interval of agents that stay silent. One that returns is seen within 15 s."""

BACKOFF_AFTER = 4
"""Failed probes before the interval grows, doubling each time."""

CHECKS_PER_INTERVAL = 10
"""How often due probes are looked for."""

ALIVE_TIMEOUT = 2.0
"""Seconds for GET /api/version, which a live Ollama answers in a millisecond."""

ACTIVITY_SECONDS = 5.0
"""Seconds since the last data from an agent within which a timed-out probe is ignored."""

STARTUP_ROUNDS = 4
"""Rounds of probes at startup while no agent answers."""

INVENTORY_TIMEOUT = 5.0
MAX_ANSWER_BYTES = 1024 * 1024
"""Of a list: a host that has MAX_MODELS lists them in that."""

LOAD_TIMEOUT = 600.0
"""Seconds that the load of a model may take."""

MAX_LOAD_BYTES = 64 * 1024
"""Of the answer to a request that only loads a model."""

AT_ONCE = 256
"""Concurrent probes of online agents; silent and new ones have a quarter of that."""

LOCAL = Address("127.0.0.1", 11434)


class Version(BaseModel):
    version: str = Field(max_length=256)


class Models(BaseModel):
    model_config = ConfigDict(extra="ignore")

    models: wire.Models | None = None


def read_models(body: bytes) -> list[ModelEntry]:
    """What a list says. ValueError: it is none, or a larger one than is read."""
    return Models.model_validate_json(check_size(body)).models or []


def host_time(answer: Answer) -> float | None:
    """What the host's clock showed, by the header `Date`, in seconds since 1970; None: it does not say."""
    try:
        return parsedate_to_datetime(answer.header(b"date") or "").timestamp()
    except (ValueError, OverflowError):
        return None


class StatusError(ValueError):
    """An answer with another status than 200."""

    def __init__(self, path: str, status: int) -> None:
        super().__init__(f"GET {path} returned status {status}")
        self.status = status


async def get(address: Address, path: str, seconds: float, via: str) -> Answer:
    """A 200 answer of an agent. Raises ValueError for another status, CallError else."""
    headers = {"Host": address.authority, "Via": via, "User-Agent": "ollama-balancer"}
    answer = await call("GET", address.url + path, timeout=seconds, limit=MAX_ANSWER_BYTES, headers=headers)
    if answer.status != 200:
        raise StatusError(path, answer.status)
    return answer


def explain(address: Address, error: Exception) -> str:
    """Why a probe of that address failed, and what is to be done about it."""
    return "; ".join(diagnose(address, error))


def diagnose(address: Address, error: Exception) -> tuple[str, str]:
    """Why a probe of that address failed, and what is to be done about it, apart."""
    match error:
        case ConnectError() | CallTimeoutError(connected=False):
            return connection_problem(address, str(error))
        case CallTimeoutError():
            return (
                f"{address} accepts connections but does not answer GET /api/version ({error})",
                "restart Ollama there",
            )
        case StatusError(status=508):
            what = "is the balancer itself or leads back to it"
        case StatusError():
            what = f"is not Ollama, or is in trouble: {error}"
        case ValidationError():
            what = "does not answer GET /api/version as Ollama does"
        case _:
            what = f"does not answer GET /api/version ({error})"
    return f"{address} {what}", "give the host and port that Ollama listens on"


@dataclass(eq=False, slots=True)
class Schedule:
    """When an agent is probed next."""

    at: float
    misses: int = 0
    """Consecutive probes that timed out."""
    in_progress: bool = False
    began: float = float("-inf")
    """When it was probed last."""


class Prober:
    """Probes agents. `via` identifies the balancer, so that it does not answer itself.

    `at_once` limits the lane of online agents, and the first rounds at startup. `first_round` is set when the agents
    known at startup have been probed.
    """

    def __init__(
        self, registry: AgentRegistry, *, wants_local: Callable[[], bool], via: str, at_once: int | None = None
    ) -> None:
        self.registry = registry
        self.via = via
        self.wants_local = wants_local
        self.first_round = asyncio.Event()
        self._wake = asyncio.Event()
        self._has_begun = False
        self._locator = Locator(registry)
        self._in_progress: set[tuple[Agent, Address]] = set()
        """Probes in progress."""
        self._schedules: dict[Agent, Schedule] = {}
        at_once = AT_ONCE if at_once is None else min(at_once, AT_ONCE)
        self._startup_lane = asyncio.Semaphore(max(1, at_once))
        self._online_lane = asyncio.Semaphore(max(1, at_once))
        self._silent_lane = asyncio.Semaphore(max(1, at_once // 4))
        self._new_lane = asyncio.Semaphore(max(1, at_once // 4))

    def wake(self) -> None:
        """Probe all agents now."""
        for schedule in self._schedules.values():
            schedule.at, schedule.misses = float("-inf"), 0
        self._wake.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        self._has_begun = True
        async with asyncio.TaskGroup() as group:
            group.create_task(self._probe_at_startup())
            group.create_task(self._probe_regularly(group))

    async def _probe_at_startup(self) -> None:
        for _ in range(STARTUP_ROUNDS):
            if await self._probe_all() or self.registry.any_online:
                break  # else: a host that was too slow once must not fail the first requests
        self.first_round.set()

    async def _probe_all(self) -> bool:
        """Probe agents that are not online; False if one timed out."""
        await self._add_local()
        probes = []
        async with asyncio.TaskGroup() as group:
            for agent in [a for a in self.registry if not a.online and self.registry.liveness.needs_probe(a)]:
                probes.append(group.create_task(self._probe_on_schedule(agent, self._claim(agent), self._startup_lane)))
                await asyncio.sleep(0)  # a thousand that are begun at once would hold up everybody's streams
        return all(task.result() for task in probes)

    async def _add_local(self) -> None:
        if self.wants_local() and len(self.registry) == 0 and await self._is_ollama(LOCAL):
            self.registry.register("local", LOCAL, Source.LOCAL)
            logger.info("Found an Ollama on %s: added as agent local.", LOCAL)

    async def _probe_regularly(self, group: asyncio.TaskGroup) -> None:
        local = self.registry.clock() + INTERVAL
        while True:
            self._wake.clear()
            try:
                now = self.registry.clock()
                if now >= local:
                    local = now + INTERVAL
                    await self._add_local()
                await self._probe_due(group)
            except Exception:
                logger.exception("Probing failed; the next try is in %g s.", INTERVAL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL / CHECKS_PER_INTERVAL):
                    await self._wake.wait()

    async def _probe_due(self, group: asyncio.TaskGroup) -> None:
        now = self.registry.clock()
        for agent in [agent for agent in self._schedules if agent.removed]:
            del self._schedules[agent]
        for agent in list(self.registry):
            schedule = self._schedules.get(agent)
            if schedule is not None and (schedule.in_progress or now < schedule.at):
                continue
            if not self.registry.liveness.needs_probe(agent) or not (agent.online or self.first_round.is_set()):
                continue
            lane = self._online_lane if agent.online and agent.silent_since is None else self._silent_lane
            group.create_task(self._probe_on_schedule(agent, self._claim(agent), lane))
            await asyncio.sleep(0)  # as above

    def _claim(self, agent: Agent) -> Schedule:
        """Its schedule, marked as in progress: it is not due while it waits for its lane."""
        schedule = self._schedules.get(agent)
        if schedule is None:
            schedule = self._schedules[agent] = Schedule(0.0)
        schedule.in_progress = True
        return schedule

    async def _probe_on_schedule(
        self, agent: Agent, schedule: Schedule, lane: AbstractAsyncContextManager[None]
    ) -> bool:
        """Probe an agent and schedule the next probe; False if it timed out."""
        answered = True
        try:
            async with lane:
                schedule.began = self.registry.clock()
                if not agent.removed:
                    answered = await self.probe(agent)
        except Exception:
            logger.exception("Agent %s cannot be probed; the next try is in %g s.", agent.name, INTERVAL)
        finally:
            schedule.misses = 0 if answered or agent.online else schedule.misses + 1
            factor = min(MAX_BACKOFF, 2 ** max(0, schedule.misses - BACKOFF_AFTER))
            schedule.at = schedule.began + INTERVAL * factor
            schedule.in_progress = False
        return answered

    async def probe(self, agent: Agent) -> bool:
        """Probe one agent; False if it timed out.

        Its answers are not trusted: sizes and types are checked, and an invalid answer counts as none.
        """
        in_progress = (agent, agent.address)
        self._in_progress.add(in_progress)
        try:
            return await self._ask(agent, agent.address)
        finally:
            self._in_progress.discard(in_progress)

    async def _ask(self, agent: Agent, address: Address) -> bool:
        try:
            answer = await self._get(address, "/api/version", ALIVE_TIMEOUT)
            version = Version.model_validate_json(answer.body).version
        except ConnectError as e:
            if is_local_failure(e):
                if agent.online:
                    self.registry.liveness.reached(agent)  # nothing is known of it; it is not to blame for that
                elif agent.address == address:
                    self.registry.liveness.silent(agent, explain(address, e))
            elif agent.address == address:
                self.registry.liveness.unreachable(agent, explain(address, e))
            return True
        except (CallError, ValueError) as e:
            logger.debug("Agent %s (%s) does not answer: %r", agent.name, address, e)
            if agent.address != address:
                return False
            late = isinstance(e, CallTimeoutError)
            if isinstance(e, StatusError) and e.status in (401, 403):
                self.registry.liveness.refuses(agent, not_let_in(e.status), PROBE_GRACE)
                return True
            # On a machine that is busy with its answers, these tell that it is still there.
            if late and agent.online and self.registry.clock() - agent.heard_at <= ACTIVITY_SECONDS:
                self.registry.liveness.reached(agent)
                return True
            reason = explain(address, e)
            self.registry.liveness.silent(agent, reason)
            return not late
        if agent.address == address and agent.online:
            self.registry.liveness.reached(agent)  # it is there, however long its lists take
        await self._list(agent, address)
        await self._locator.locate(agent, address, answer.peer)
        if agent.address == address:
            self.registry.inventory.update_version(agent, version)
            self.registry.liveness.reached(agent)
        return True

    async def probe_now(self, agent: Agent) -> None:
        """Probe an agent that is new, has moved or begins to report, if probing has started."""
        if not self._has_begun:
            return
        since = self.registry.clock()
        async with self._new_lane:
            schedule = self._schedules.get(agent)
            if schedule is not None:
                schedule.misses = 0
            just_probed = schedule is not None and schedule.began >= since and not schedule.in_progress
            if not (agent.removed or just_probed or (agent, agent.address) in self._in_progress):
                await self._probe_on_schedule(agent, self._claim(agent), contextlib.nullcontext())

    async def refresh(self, agent: Agent) -> None:
        """Update the lists of models of an agent."""
        await self._list(agent, agent.address)

    async def refresh_loaded(self, agent: Agent, *, unloading: str | None = None, last: bool = True) -> bool:
        """Update the loaded models of an agent; False if `unloading` (a canonical name) is still loaded.

        In that case the list is stored only on the last check.
        """
        address, began = agent.address, self.registry.clock()
        try:
            answer = await self._get(address, "/api/ps", ALIVE_TIMEOUT)
            entries = read_models(answer.body)
        except (CallError, ValueError):
            return True
        if agent.address != address or agent.removed:
            return True
        if unloading is not None and any(canonical_name(entry.name) == unloading for entry in entries) and not last:
            return False
        self.registry.inventory.update_loaded(agent, entries, began, host_time=host_time(answer))
        if unloading is not None and unloading not in agent.listed:
            self.registry.inventory.unloaded(agent, unloading)
        return True

    async def loaded(self, agent: Agent) -> set[str] | None:
        """The canonical names of the models that the agent has in memory; None if it does not answer."""
        try:
            entries = read_models((await self._get(agent.address, "/api/ps", ALIVE_TIMEOUT)).body)
        except (CallError, ValueError):
            return None
        return {canonical_name(entry.name) for entry in entries}

    async def load(self, agent: Agent, model: str) -> bool:
        """Have an agent load one of its models, by Ollama's request without a prompt; whether it has."""
        return await self._generate(agent, model, LOAD_TIMEOUT)

    async def unload(self, agent: Agent, model: str) -> bool:
        """Have an agent unload one of its models, by the same with a keep-alive of 0; whether it does."""
        unloaded = await self._generate(agent, model, UNLOAD_TIMEOUT, keep_alive=0)
        if unloaded:
            self.registry.inventory.unloaded(agent, model)
        return unloaded

    async def _generate(self, agent: Agent, model: str, seconds: float, **members: int) -> bool:
        """Ask an agent to write nothing; whether it agrees."""
        entry = (agent.models or {}).get(model)
        if entry is None:
            return False
        address, content = agent.address, json.dumps({"model": entry.name, **members}).encode()
        headers = {"Host": address.authority, "Via": self.via, "User-Agent": "ollama-balancer"}
        headers["Content-Type"] = "application/json"
        url = f"{address.url}/api/generate"
        try:
            answer = await call("POST", url, timeout=seconds, limit=MAX_LOAD_BYTES, content=content, headers=headers)
        except (CallError, ValueError) as e:
            logger.debug("Agent %s does not load or unload %s: %r", agent.name, model, e)
            return False
        return answer.status == 200 and agent.address == address

    async def _list(self, agent: Agent, address: Address) -> None:
        began = self.registry.clock()
        try:
            models = read_models((await self._get(address, "/api/tags", INVENTORY_TIMEOUT)).body)
            answer = await self._get(address, "/api/ps", INVENTORY_TIMEOUT)
            loaded = read_models(answer.body)
        except (CallError, ValueError) as e:
            logger.debug("Agent %s (%s) does not list its models: %r", agent.name, address, e)
            return
        if agent.address == address:
            self.registry.inventory.update_loaded(agent, loaded, began, host_time=host_time(answer))
            self.registry.inventory.update_models(agent, models)

    async def _is_ollama(self, address: Address) -> bool:
        try:
            Version.model_validate_json((await self._get(address, "/api/version", ALIVE_TIMEOUT)).body)
        except (CallError, ValueError):
            return False
        return True

    async def _get(self, address: Address, path: str, seconds: float) -> Answer:
        return await get(address, path, seconds, self.via)
