"""The registry of agents: membership in the fleet, and the front of the core.

Its parts are public: `inventory` (which agent has which model), `liveness` (who is online), `ejection` (who fails),
`limiter` (what runs where) and `selection` (who gets a request).

A request is complete when its lease is released: at the last byte, the error or the client's disconnect, whichever
comes first. A lease for a model takes one of the agent's slots; an agent without a free slot is not chosen.
"""

from __future__ import annotations

import logging
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import TYPE_CHECKING

from agent_reporter.limits import NAME_PATTERN

from .address import Address
from .agent import Agent, Source, Status, agent_id
from .ejection import Ejection
from .events import EventKind
from .fleet import Fleet
from .inventory import Inventory
from .knowledge import Knowledge
from .limiter import ConcurrencyLimiter
from .liveness import Liveness
from .policies import DEFAULT_POLICY, POLICIES
from .preloading import Preloading
from .selection import Selection

if TYPE_CHECKING:
    from agent_reporter.wire import AgentMetrics

logger = logging.getLogger(__name__)

MAX_AGENTS = 200_000

LIST_SECONDS = 2.0
"""Seconds that a host may take to list its loaded models, before a report is made."""

_ROUND_ROBIN, _METRICS = POLICIES["roundrobin"], POLICIES["metrics"]

_NAME = re.compile(NAME_PATTERN)


class AgentRegistry:
    """The fleet.

    `clock` gives monotonic seconds, `stale_after` the seconds for which a report counts, `mode` the policy's name,
    `slots` the requests that an agent may run at once per model (0: what its report says, else learned), `chance`
    random numbers from 0 to 1. `must_reach`: a report alone does not make an agent online, before a probe or a request
    has got through to it. `canonical_name` gives the one spelling of a model's name by which models are told apart.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        stale_after: float = 30.0,
        mode: str = DEFAULT_POLICY,
        slots: int = 0,
        chance: Callable[[], float] = random.random,
        must_reach: bool = False,
        canonical_name: Callable[[str], str] = str,
    ) -> None:
        self.clock = clock
        self.fleet = Fleet(clock, chance)
        self.learner, self.avoidance = self.fleet.learner, self.fleet.avoidance
        self.knowledge = Knowledge(self.fleet)
        self.inventory = Inventory(self.fleet, canonical_name)
        self.ejection = Ejection(self.fleet)
        self.limiter = ConcurrencyLimiter(self.fleet, self.ejection, slots)
        self.liveness = Liveness(self.fleet, self.ejection, self.limiter, stale_after)
        self.limiter.on_contact = self.liveness.reached
        self.inventory.on_evicted = self.limiter.evicted
        self.learner.facts.on_slots_void = self.limiter.start_over
        self.selection = Selection(self.fleet, mode)
        self.preloading = Preloading(self.fleet, self.limiter, self.selection)
        self.fleet.expiring += [self.liveness, self.ejection, self.limiter]
        self._must_reach = must_reach
        self._agents = self.fleet.agents
        self._names: dict[str, Agent] = {}
        self._addresses: Counter[Address] = Counter()
        self._next_number = 0
        self.revision = 0
        """Grows when an agent is registered, moved, removed, drained or resumed."""

    def __repr__(self) -> str:
        states = ", ".join(f"{n} {status}" for status, n in sorted(self.counts().items()))
        return f"AgentRegistry({self.mode}: {states or 'no agents'}; {self.in_flight} in flight)"

    def __iter__(self) -> Iterator[Agent]:
        self.expire()
        return iter(list(self._agents.values()))

    def __len__(self) -> int:
        return len(self._agents)

    @property
    def any_online(self) -> bool:
        self.expire()
        return any(agent.online for agent in self._agents.values())

    @property
    def in_flight(self) -> int:
        return sum(agent.in_flight for agent in self._agents.values())

    def counts(self) -> Counter[Status]:
        """How many agents are in which state."""
        self.expire()
        return Counter(agent.status for agent in self._agents.values())

    def get(self, key: str) -> Agent | None:
        """The agent with that id, else the one with that name."""
        self.expire()
        return self._agents.get(key) or self._names.get(key)

    def knows(self, host: str, port: int) -> bool:
        """Whether an agent has that address."""
        return Address(host, port) in self._addresses

    def expire(self) -> None:
        """Drop what has expired: see `Fleet.expire`."""
        self.fleet.expire()

    def register(
        self, name: str, address: Address, source: Source = Source.REGISTERED, key: str | None = None
    ) -> tuple[Agent, bool]:
        """Take in an agent, or find the one of that name and give it the new address; and whether it is new.

        `key` is the name of the client key that reports for it from now on. A registration ends a drain that was asked
        for until then. ValueError: the name is not usable, or the fleet is full.
        """
        self.check([name])
        agent = self._names.get(name)
        if agent is not None:
            if agent.address != address:
                self.revision += 1
                self._leave(agent.address)
                self._addresses[address] += 1
                agent.moved(address)
                self.fleet.on_event(name, EventKind.MOVED, f"to {address}")
                self.liveness.lost(agent, "moved to a new address")
                agent.contact_unknown(reachable=not self._must_reach)
                self.located(agent, None)
            if agent.draining_until_registration:
                self._resume(agent)
                self.fleet.settle_aliases(agent)
            self._bind(agent, key)
            return agent, False
        agent = Agent(name, address, source, self._next_number)
        self._next_number += 1
        self._agents[agent.id] = self._names[name] = agent
        self.fleet.undiscovered[agent] = None
        self.revision += 1
        self.limiter.fix_slots(agent)
        self.knowledge.arrived(agent)
        agent.contact_unknown(reachable=not self._must_reach)
        self._addresses[address] += 1
        self._bind(agent, key)
        self.fleet.on_event(name, EventKind.REGISTERED, f"{source}, at {address}")
        return agent, True

    def _bind(self, agent: Agent, key: str | None) -> None:
        if key is not None and key != agent.key:
            agent.bound_to(key)
            self.revision += 1

    def check(self, names: Collection[str], leaving: Collection[Agent] = ()) -> None:
        """Whether agents of these names could be registered together, once those that leave are gone. ValueError says
        why not.
        """
        new = {name for name in names if name not in self._names}
        leaving = set(leaving)
        others = {name for name, agent in self._names.items() if agent not in leaving} if leaving else self._names
        for name in new:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{name[:80]!r} is not a valid name: letters, digits and . _ : [ ] -, at most 64, beginning with "
                    "a letter or digit"
                )
            own = agent_id(name)
            taken = self._agents.get(name)
            if (taken and taken not in leaving) or own in others or (len(new) > 1 and own in new):
                raise ValueError(f"name {name!r} is another agent's id: choose another name")
        if new and len(self._agents) - len(leaving) + len(new) > MAX_AGENTS:
            raise ValueError(f"the fleet has {MAX_AGENTS} agents, which is the maximum: remove some")

    def remove(self, agent: Agent) -> None:
        """Take an agent out of the fleet. Its running requests finish."""
        if agent.removed:
            return
        agent.left()
        self.fleet.aliases_changed(self.fleet.hosts.move(agent, None))
        self.revision += 1
        self._agents.pop(agent.id, None)
        self._names.pop(agent.name, None)
        self._leave(agent.address)
        self.fleet.undiscovered.pop(agent, None)
        for part in (self.liveness, self.ejection, self.limiter, self.avoidance, self.learner):
            part.forget(agent)
        self.fleet.came_or_went(agent)
        self.fleet.on_event(agent.name, EventKind.REMOVED, "its running requests finish" if agent.in_flight else "")
        for model in agent.models or ():
            self.fleet.forget_holder(model, agent)
        self.fleet.eligibility_changed(agent)

    def drain(
        self, agent: Agent, *, until_registration: bool = False, configured: bool = False, alone: bool = False
    ) -> None:
        """Send it no new requests; those that run finish. Its host's other names are drained with it, if it is not
        `alone`, nor its reporter that ends. `configured`: the configuration wants it, see `end_configured_drain`.
        """
        for each in [agent] if alone or until_registration else self.fleet.hosts.of(agent):
            self._drain(each, until_registration=until_registration, configured=configured)
        self.fleet.settle_aliases(agent)

    def _drain(self, agent: Agent, *, until_registration: bool, configured: bool) -> None:
        if not agent.draining:
            logger.info("Agent %s is draining: no new requests, %d in flight.", agent.name, agent.in_flight)
            why = "its reporter has stopped" if until_registration else "no new requests until it is resumed"
            self.fleet.on_event(agent.name, EventKind.DRAINED, why)
        agent.drain_started(until_registration=until_registration, configured=configured)
        self.revision += 1
        self.fleet.eligibility_changed(agent)

    def resume(self, agent: Agent) -> None:
        """Send it requests again, and its host's other names."""
        for each in self.fleet.hosts.of(agent):
            self._resume(each)
        self.fleet.settle_aliases(agent)

    def end_configured_drain(self, agent: Agent, *, alone: bool = False) -> None:
        """Resume it and, if not `alone`, its host's other names, unless somebody else has drained them."""
        for each in [agent] if alone else self.fleet.hosts.of(agent):
            if each.drained_by_configuration:
                self._resume(each)
        self.fleet.settle_aliases(agent)

    def _resume(self, agent: Agent) -> None:
        if agent.draining:
            logger.info("Agent %s is resumed%s.", agent.name, "" if agent.online else ", though it is offline")
            self.revision += 1
            self.fleet.on_event(agent.name, EventKind.RESUMED, "" if agent.online else "it is offline")
        agent.drain_ended()
        self.fleet.eligibility_changed(agent)

    def located(self, agent: Agent, key: Hashable | None) -> None:
        """Where the agent's host listens: two that have an equal key are one host. None: it is not known."""
        if agent.removed:
            return
        known = agent.host_key
        self.fleet.aliases_changed(self.fleet.hosts.move(agent, key))
        together = self.fleet.hosts.of(agent)
        if key != known and len(together) > 1:
            logger.warning(
                "Agents %s are one host: only %s gets requests, with one set of slots. Remove the others.",
                " and ".join(f"{each.name} ({each.address})" for each in together[:8]),
                (agent.alias_of or agent).name,
            )

    @property
    def slots(self) -> int:
        """The requests that an agent may run at once per model; 0: what its report says, else learned."""
        return self.limiter.slots

    @slots.setter
    def slots(self, slots: int) -> None:
        self.limiter.slots = slots
        for agent in list(self._agents.values()):
            self.limiter.fix_slots(agent)

    def configure_slots(self, agent: Agent, slots: int | None) -> None:
        """Give one agent other slots than all have; None: the same, 0: what its report says, else learned."""
        if slots != agent.own_slots:
            agent.slots_configured(slots)
            self.limiter.fix_slots(agent)

    @property
    def stale_after(self) -> float:
        """Seconds for which a report counts."""
        return self.liveness.stale_after

    @stale_after.setter
    def stale_after(self, seconds: float) -> None:
        self.liveness.stale_after = seconds
        self.fleet.next_expiry = -math.inf
        self.fleet.expire()

    @property
    def mode(self) -> str:
        """The name of the policy that chooses."""
        return self.selection.policy.name

    @mode.setter
    def mode(self, mode: str) -> None:
        """KeyError: no policy of that name."""
        policy = POLICIES[mode]
        if policy is not self.selection.policy:
            self.selection.policy = policy
            self.fleet.pools.clear()

    def update_metrics(self, key: str, metrics: AgentMetrics) -> bool:
        """Store a report of the agent with that id or name; False if a newer one is there.

        KeyError: no such agent. A report with an older timestamp than the stored one is dropped as long as the stored
        one is fresh: a host whose clock was set back must not stay silent for ever.
        """
        fleet, inventory, now = self.fleet, self.inventory, self.clock()
        if now >= fleet.next_expiry:
            fleet.expire()
        agent = self._agents.get(key) or self._names.get(key)
        if agent is None:
            raise KeyError(key)
        if agent.fresh and agent.metrics is not None and metrics.timestamp < agent.metrics.timestamp:
            return False
        self.liveness.report_received(agent, metrics, now)
        self.limiter.fix_slots(agent)
        self.learner.facts.reported(agent, metrics)
        if metrics.loaded_models is not None:
            host_time = metrics.timestamp.timestamp()
            as_of = now - agent.report_delay.of(host_time, now) - LIST_SECONDS
            inventory.update_loaded(agent, metrics.loaded_models, as_of, host_time=host_time)
        if metrics.ollama_version is not None:
            inventory.update_version(agent, metrics.ollama_version)
        if metrics.models is not None:
            inventory.update_models(agent, metrics.models)
        self.liveness.reports(agent, metrics)
        if agent.host_key is not None:
            fleet.settle_aliases(agent)
        for pool in agent.pools:
            pool.changed(agent)
        return True

    def select_agent(self, model: str | None = None, exclude: Collection[Agent] = ()) -> Agent | None:
        """Round robin: online agents in turn, `index % len(online)`."""
        return self.selection.select_by(_ROUND_ROBIN, model, exclude)

    def select_agent_by_metrics(self, model: str | None = None, exclude: Collection[Agent] = ()) -> Agent | None:
        """Lowest `cpu_usage + memory_usage + active_requests * 10`; see `policies.metrics`."""
        return self.selection.select_by(_METRICS, model, exclude)

    def _leave(self, address: Address) -> None:
        self._addresses[address] -= 1
        if self._addresses[address] <= 0:
            del self._addresses[address]
