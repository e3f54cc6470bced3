"""Asks the agents that have no reporter, or whose reporter is silent, whether they are there and what they have.

Each is asked on its own schedule, and there are lanes: for those that answer, for those that do not, each of which
takes the whole of a time-out, and for those that have just come. So thousands that are silent keep no probe of a living
one waiting, and take no more connections than their lane has. Who stays silent is asked less often.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent_reporter import wire
from agent_reporter.http import Answer, CallError, ConnectError, LateError, call
from agent_reporter.wire import ModelEntry, check_size

from ..core.address import Address
from ..core.agent import Agent, Source
from ..core.liveness import PROBE_GRACE
from ..core.registry import AgentRegistry
from ..gateway.descriptors import is_ours
from ..gateway.reachability import cannot_connect
from ..ollama.errors import not_let_in
from ..ollama.names import canonical_name
from .local import Locator

logger = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds from one probe of an agent to the next."""

LONGEST_INTERVAL = 2
"""Times as long for who stays silent: it takes a connection and a time-out each time. Who is back is seen in 15 s."""

PATIENT_TRIES = 4
"""Probes in vain after which an agent is asked less often, twice as long each time."""

LOOKS_IN_INTERVAL = 10
"""How often it is seen who is due."""

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
"""Agents that are asked at the same time, of those that answer; those that are silent, and new ones, have a quarter."""

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
        case StatusError():
            what = f"is no Ollama, or not well: {error}"
        case ValidationError():
            what = "does not answer GET /api/version as Ollama does"
        case _:
            what = f"does not answer GET /api/version ({error})"
    return f"{address} {what}; name the host and port on which Ollama listens"


@dataclass(eq=False, slots=True)
class Turn:
    """When an agent is asked next."""

    at: float
    misses: int = 0
    """Probes that it has let run out of time, one after the other."""
    asked: bool = False
    began: float = float("-inf")
    """When it was asked last."""


class Prober:
    """Probes each agent in its turn. `via` names the balancer, which does not answer itself.

    `at_once` is how many probes may run in the lane of those that answer, and as many more while all are asked at the
    start.

    `first_round` is set when the agents known at the start have been asked; several times where none answered in time.
    """

    def __init__(
        self, registry: AgentRegistry, *, take_in_local: Callable[[], bool], via: str, at_once: int | None = None
    ) -> None:
        self.registry = registry
        self.via = via
        self.take_in_local = take_in_local
        self.first_round = asyncio.Event()
        self._wake = asyncio.Event()
        self._has_begun = False
        self._locator = Locator(registry)
        self._asked: set[tuple[Agent, Address]] = set()
        """Who is asked at this moment."""
        self._turns: dict[Agent, Turn] = {}
        at_once = AT_ONCE if at_once is None else min(at_once, AT_ONCE)
        self._first = asyncio.Semaphore(max(1, at_once))
        self._living = asyncio.Semaphore(max(1, at_once))
        self._silent = asyncio.Semaphore(max(1, at_once // 4))
        self._new = asyncio.Semaphore(max(1, at_once // 4))

    def wake(self) -> None:
        """Ask all now."""
        for turn in self._turns.values():
            turn.at, turn.misses = float("-inf"), 0
        self._wake.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        self._has_begun = True
        async with asyncio.TaskGroup() as group:
            group.create_task(self._first_rounds())
            group.create_task(self._keep_asking(group))

    async def _first_rounds(self) -> None:
        for _ in range(FIRST_TRIES):
            if await self._ask_all() or self.registry.any_online:
                break  # else: a host that was too slow once must not fail the first requests
        self.first_round.set()

    async def _ask_all(self) -> bool:
        """Ask those that are not online; False if one did not answer in time."""
        await self._take_in_local()
        probes = []
        async with asyncio.TaskGroup() as group:
            for agent in [a for a in self.registry if not a.online and self.registry.liveness.needs_probe(a)]:
                probes.append(group.create_task(self._take_turn(agent, self._turn_of(agent), self._first)))
                await asyncio.sleep(0)  # a thousand that are begun at once would hold up everybody's streams
        return all(task.result() for task in probes)

    async def _take_in_local(self) -> None:
        if self.take_in_local() and len(self.registry) == 0 and await self._answers(LOCAL):
            self.registry.register("local", LOCAL, Source.LOCAL)
            logger.info("An Ollama answers on %s: taken in as agent local.", LOCAL)

    async def _keep_asking(self, group: asyncio.TaskGroup) -> None:
        local = self.registry.clock() + INTERVAL
        while True:
            self._wake.clear()
            try:
                now = self.registry.clock()
                if now >= local:
                    local = now + INTERVAL
                    await self._take_in_local()
                await self._ask_those_due(group)
            except Exception:
                logger.exception("Probes failed; the next ones are in %g s.", INTERVAL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL / LOOKS_IN_INTERVAL):
                    await self._wake.wait()

    async def _ask_those_due(self, group: asyncio.TaskGroup) -> None:
        now = self.registry.clock()
        for agent in [agent for agent in self._turns if agent.removed]:
            del self._turns[agent]
        for agent in list(self.registry):
            turn = self._turns.get(agent)
            if turn is not None and (turn.asked or now < turn.at):
                continue
            if not self.registry.liveness.needs_probe(agent) or not (agent.online or self.first_round.is_set()):
                continue
            lane = self._living if agent.online and agent.silent_since is None else self._silent
            group.create_task(self._take_turn(agent, self._turn_of(agent), lane))
            await asyncio.sleep(0)  # as above

    def _turn_of(self, agent: Agent) -> Turn:
        """Its turn, which begins now: it is not due while it waits for its lane."""
        turn = self._turns.get(agent)
        if turn is None:
            turn = self._turns[agent] = Turn(0.0)
        turn.asked = True
        return turn

    async def _take_turn(self, agent: Agent, turn: Turn, lane: AbstractAsyncContextManager[None]) -> bool:
        """Ask an agent and say when it is asked next; False if it did not answer in time."""
        answered = True
        try:
            async with lane:
                turn.began = self.registry.clock()
                if not agent.removed:
                    answered = await self.probe(agent)
        except Exception:
            logger.exception("Agent %s cannot be probed; the next try is in %g s.", agent.name, INTERVAL)
        finally:
            turn.misses = 0 if answered or agent.online else turn.misses + 1
            longer = min(LONGEST_INTERVAL, 2 ** max(0, turn.misses - PATIENT_TRIES))
            turn.at = turn.began + INTERVAL * longer
            turn.asked = False
        return answered

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
            late = isinstance(e, LateError)
            if isinstance(e, StatusError) and e.status in (401, 403):
                self.registry.liveness.refuses(agent, not_let_in(e.status), PROBE_GRACE)
                return True
            # On a machine that is busy with its answers, these tell that it is still there.
            if late and agent.online and self.registry.clock() - agent.heard_at <= HEARD_SECONDS:
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

    async def look_at(self, agent: Agent) -> None:
        """Ask one agent now, that is new, has moved or begins to report, if the rounds have begun; else they will."""
        if not self._has_begun:
            return
        since = self.registry.clock()
        async with self._new:
            turn = self._turns.get(agent)
            if turn is not None:
                turn.misses = 0
            already = turn is not None and turn.began >= since and not turn.asked
            if not (agent.removed or already or (agent, agent.address) in self._asked):
                await self._take_turn(agent, self._turn_of(agent), contextlib.nullcontext())

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
        self.registry.inventory.update_loaded(agent, entries, began)
        if unloading is not None and unloading not in agent.listed:
            self.registry.inventory.unloaded(agent, unloading)
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
            self.registry.inventory.update_loaded(agent, loaded, began)
            self.registry.inventory.update_models(agent, models)

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
