"""The agents of the fleet, what is known of each, and the choice among them.

When is an agent online? When a report (not older than `stale_after`) or a probe (not older than `PROBE_GRACE`) says
that its Ollama answers. A request that could not reach it, or a report that its Ollama is down, ends that at once.

When is a request complete? When its lease is released: at the last byte, the error or the client's disconnect,
whichever comes first; a lease is released once.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator

from agent_reporter.wire import NAME_PATTERN, AgentMetrics, ModelEntry

from ..ollama.names import canonical_name
from .agent import HOT_CPU, RANK_SCALE, Address, Agent, Outcome, Source, Status, agent_id
from .policies import DEFAULT_POLICY, POLICIES, Policy
from .pool import Pool

logger = logging.getLogger(__name__)

PROBE_GRACE = 13.0
"""Seconds for which a probe's answer holds: two missed probes, and a silent agent is offline within 15 s."""

MAX_POOLS = 256
"""Pools (one a model) kept at once for each policy; the one not asked for longest makes room."""

MAX_AGENTS = 200_000

SUCCEEDED, FAILED = Outcome.SUCCEEDED, Outcome.FAILED

_ROUND_ROBIN, _METRICS = POLICIES["roundrobin"], POLICIES["metrics"]

_NAME = re.compile(NAME_PATTERN)

_UNKNOWN = ""
"""The key of the pool of agents whose models are not known yet; no canonical model name is empty."""


class Lease:
    """A request in flight on an agent: a handle that counts once."""

    __slots__ = ("agent", "released")

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.released = False

    def __repr__(self) -> str:
        return f"Lease({self.agent.name}, {'released' if self.released else 'held'})"

    def release(self, outcome: Outcome = SUCCEEDED, seconds: float = 0.0) -> bool:
        """End the request; False (and no effect) if it has ended before.

        `seconds` is how long it took, for the statistics of the succeeded.
        """
        if self.released:
            return False
        self.released = True
        agent = self.agent
        agent.in_flight -= 1
        for board in agent.boards:
            board.update(agent)
        stats = agent.stats
        if outcome is SUCCEEDED:
            stats.succeeded += 1
            stats.response_seconds += seconds
        elif outcome is FAILED:
            stats.failed += 1
        else:
            stats.cancelled += 1
        return True


class AgentRegistry:
    """The fleet.

    `clock` gives monotonic seconds, `stale_after` the seconds for which a report counts, `mode` the policy's name.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        stale_after: float = 30.0,
        mode: str = DEFAULT_POLICY,
    ) -> None:
        self.clock = clock
        self._stale_after = stale_after
        self._policy = POLICIES[mode]
        self._agents: dict[str, Agent] = {}
        self._names: dict[str, Agent] = {}
        self._addresses: Counter[Address] = Counter()
        self._next_number = 0
        self._pools: dict[str, dict[str | None, Pool]] = {name: {} for name in POLICIES}
        self._holders: dict[str, dict[Agent, None]] = {}
        # Both in the order of arrival, so that what expires first is in front.
        self._reports: OrderedDict[Agent, float] = OrderedDict()
        self._probes: OrderedDict[Agent, float] = OrderedDict()
        self._next_expiry = math.inf
        self.changed_models: set[str] = set()
        """Models whose entries or online holders have changed since somebody merged them and cleared this."""
        self.generation = 0
        """Grows when an agent comes or goes, or what one has loaded, or its version, changes."""

    def __repr__(self) -> str:
        states = ", ".join(f"{n} {status}" for status, n in sorted(self.counts().items()))
        return f"AgentRegistry({self.mode}: {states or 'no agents'}; {self.in_flight} in flight)"

    # The fleet

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

    def register(self, name: str, address: Address, source: Source = Source.REGISTERED) -> tuple[Agent, bool]:
        """Take in an agent, or find the one of that name and give it the new address; and whether it is new.

        A registration ends a drain that was asked for until then. ValueError: the name is not usable, or
        the fleet is full.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"name {name[:80]!r}: letters, digits and . _ : [ ] -, at most 64, beginning with a letter or digit"
            )
        agent = self._names.get(name)
        if agent is not None:
            if agent.address != address:
                self._leave(agent.address)
                self._addresses[address] += 1
                agent.address = address
                self._lose(agent, "moved to a new address")
            if agent.draining_until_registration:
                self.resume(agent)
            return agent, False
        if name in self._agents or agent_id(name) in self._names:
            raise ValueError(f"name {name!r} is another agent's id: choose another name")
        if len(self._agents) >= MAX_AGENTS:
            raise ValueError(f"the fleet has {MAX_AGENTS} agents, which is the most: delete some")
        agent = Agent(name, address, source, self._next_number)
        self._next_number += 1
        self._agents[agent.id] = self._names[name] = agent
        self._addresses[address] += 1
        return agent, True

    def remove(self, agent: Agent) -> None:
        """Take an agent out of the fleet. Its running requests finish."""
        if agent.removed:
            return
        agent.removed = True
        self._agents.pop(agent.id, None)
        self._names.pop(agent.name, None)
        self._leave(agent.address)
        self._reports.pop(agent, None)
        self._probes.pop(agent, None)
        self._came_or_went(agent)
        for model in agent.models or ():
            self._forget_holder(model, agent)
        self._place(agent)

    def drain(self, agent: Agent, *, until_registration: bool = False) -> None:
        """Send it no new requests; those that run finish."""
        if not agent.draining:
            logger.info("Agent %s is draining: no new requests, %d in flight.", agent.name, agent.in_flight)
            agent.draining = True
            agent.draining_until_registration = until_registration
        elif not until_registration:
            agent.draining_until_registration = False
        self._place(agent)

    def resume(self, agent: Agent) -> None:
        if agent.draining:
            logger.info("Agent %s is resumed.", agent.name)
        agent.draining = agent.draining_until_registration = False
        self._place(agent)

    # What is heard of the agents

    @property
    def stale_after(self) -> float:
        return self._stale_after

    @stale_after.setter
    def stale_after(self, seconds: float) -> None:
        self._stale_after = seconds
        self._next_expiry = -math.inf
        self.expire()

    def update_metrics(self, key: str, metrics: AgentMetrics) -> bool:
        """Store a report of the agent with that id or name; False if a newer one is there.

        KeyError: no such agent. A report with an older timestamp than the stored one is dropped as long as the stored
        one is fresh: a host whose clock was set back must not stay silent for ever.
        """
        now = self.clock()
        if now >= self._next_expiry:
            self.expire()
        agent = self._agents.get(key) or self._names.get(key)
        if agent is None:
            raise KeyError(key)
        if agent.fresh and agent.metrics is not None and metrics.timestamp < agent.metrics.timestamp:
            return False
        agent.metrics = metrics
        agent.metrics_at = now
        agent.reported_active = metrics.active_requests
        agent.base_rank = round(metrics.cpu_usage * RANK_SCALE) + round(metrics.memory_usage * RANK_SCALE)
        agent.hot = metrics.cpu_usage > HOT_CPU
        agent.fresh = True
        self._reports[agent] = now
        self._reports.move_to_end(agent)
        if now + self._stale_after < self._next_expiry:
            self._next_expiry = now + self._stale_after
        if metrics.loaded_models is not None:
            self.update_loaded(agent, metrics.loaded_models)
        if metrics.ollama_version is not None:
            self.update_version(agent, metrics.ollama_version)
        if metrics.models is not None:
            self.update_models(agent, metrics.models)
        if metrics.ollama_ok is False:
            self._lose(agent, "its reporter says that Ollama does not answer there")
        elif not agent.reported_alive:
            self._find(agent, "reports", reported=True)
        for pool in agent.pools:
            pool.changed(agent)
        return True

    def update_models(self, agent: Agent, entries: list[ModelEntry]) -> None:
        """Store which models the agent has."""
        old = agent.models
        names = [entry.name for entry in entries]
        if old is not None and names == agent.model_names and len(old) == len(entries):
            for (model, known), entry in zip(old.items(), entries, strict=True):
                if known.__pydantic_extra__ != entry.__pydantic_extra__:
                    old[model] = entry
                    self.changed_models.add(model)
            return
        old = old or {}
        new = {canonical_name(entry.name): entry for entry in entries}
        agent.models = new
        agent.model_names = names
        if agent.removed:
            return
        self.changed_models.update(old, new)
        for model in old.keys() - new.keys():
            self._forget_holder(model, agent)
        for model in new.keys() - old.keys():
            self._holders.setdefault(model, {})[agent] = None
        self._place(agent)

    def forget_model(self, agent: Agent, model: str) -> None:
        """The agent does not have the model (a canonical name) after all, or no longer."""
        if agent.models is not None and model in agent.models:
            self.update_models(agent, [entry for name, entry in agent.models.items() if name != model])

    def update_loaded(self, agent: Agent, entries: list[ModelEntry]) -> None:
        """Store which models the agent has in memory."""
        if entries != agent.loaded:
            agent.loaded = entries
            self.generation += 1

    def update_version(self, agent: Agent, version: str) -> None:
        if version != agent.version:
            agent.version = version
            self.generation += 1

    def holders(self, model: str) -> list[Agent]:
        """The agents known to have the model (a canonical name), in whatever state."""
        return list(self._holders.get(model, ()))

    def models(self) -> list[str]:
        """The canonical names of all models that any agent has, in whatever state."""
        return list(self._holders)

    def reached(self, agent: Agent) -> None:
        """The agent answered a probe."""
        if agent.removed:
            return
        now = self.clock()
        self._probes[agent] = now
        self._probes.move_to_end(agent)
        self._next_expiry = min(self._next_expiry, now + PROBE_GRACE)
        if not agent.probed:
            self._find(agent, "answers", probed=True)

    def unreachable(self, agent: Agent, reason: str) -> None:
        """A request or a probe was refused or found nobody: offline until a probe or a report says otherwise."""
        self._lose(agent, reason)

    def wants_probe(self, agent: Agent) -> bool:
        """Whether a probe is to tell what no report tells: an agent without recent reports, or without known models."""
        if agent.models is None or not agent.online or agent.metrics is None:
            return True
        return self.clock() - agent.metrics_at > self._stale_after * 2 / 3

    # The choice

    @property
    def mode(self) -> str:
        return self._policy.name

    @mode.setter
    def mode(self, mode: str) -> None:
        """KeyError: no policy of that name."""
        policy = POLICIES[mode]
        if policy is not self._policy:
            self._policy = policy
            for pools in self._pools.values():
                for pool in pools.values():
                    pool.clear()
                pools.clear()

    @property
    def policy(self) -> Policy:
        return self._policy

    def select(self, model: str | None = None, exclude: Collection[Agent] = ()) -> Agent | None:
        """The agent for the next request, by the current mode.

        `model` is a canonical model name, or None if any agent will do; `exclude` the few agents that have been tried.
        Candidates are online, not draining, and have the model; those whose models are not known yet come after them.
        None: no candidate. The choice takes no lease.
        """
        return self._select(self._policy, model, exclude)

    def select_agent(self, model: str | None = None, exclude: Collection[Agent] = ()) -> Agent | None:
        """Round robin: online agents in turn, `index % len(online)`."""
        return self._select(_ROUND_ROBIN, model, exclude)

    def select_agent_by_metrics(self, model: str | None = None, exclude: Collection[Agent] = ()) -> Agent | None:
        """Lowest `cpu_usage + memory_usage + active_requests * 10`; see `policies.metrics`."""
        return self._select(_METRICS, model, exclude)

    def take(self, agent: Agent) -> Lease:
        """Count a request in flight on the agent, from now on."""
        agent.in_flight += 1
        for board in agent.boards:
            board.update(agent)
        return Lease(agent)

    def has_model(self, model: str) -> bool:
        """Whether any agent, in whatever state, is known to have the model."""
        return model in self._holders

    def may_have_unknown_models(self) -> bool:
        """Whether there is an agent, in whatever state, whose models are not known yet."""
        return any(agent.models is None for agent in self._agents.values())

    def _select(self, policy: Policy, model: str | None, exclude: Collection[Agent]) -> Agent | None:
        now = self.clock()
        if now >= self._next_expiry:
            self.expire()
        pool = self._pools[policy.name].get(model)
        if pool is None:
            pool = self._pool(policy, model)
        if pool is not None:
            pool.used = now
            agent = policy.select(pool, exclude)
            if agent is not None:
                return agent
        if model is None:
            return None
        return policy.select(self._pool(policy, _UNKNOWN) or Pool(policy), exclude)

    def _pool(self, policy: Policy, model: str | None) -> Pool | None:
        """The pool of those candidates, made if need be; None for a model that nobody has."""
        pools = self._pools[policy.name]
        pool = pools.get(model)
        if pool is not None:
            return pool
        if model is not None and model != _UNKNOWN and model not in self._holders:
            return None
        if len(pools) >= MAX_POOLS:
            oldest = min(pools, key=lambda key: pools[key].used)
            pools.pop(oldest).clear()
        pool = pools[model] = Pool(policy)
        pool.used = self.clock()
        holders: Iterable[Agent] = self._agents.values() if model is None or model == _UNKNOWN else self._holders[model]
        for agent in holders:
            if self._belongs(agent, model):
                pool.add(agent)
        return pool

    @staticmethod
    def _belongs(agent: Agent, model: str | None) -> bool:
        if not agent.eligible:
            return False
        if model is None:
            return True
        if model == _UNKNOWN:
            return agent.models is None
        return agent.models is not None and model in agent.models

    def _place(self, agent: Agent) -> None:
        """Put the agent into the pools where it belongs and out of the others."""
        for pools in self._pools.values():
            for model, pool in pools.items():
                if self._belongs(agent, model):
                    pool.add(agent)
                else:
                    pool.discard(agent)

    def _forget_holder(self, model: str, agent: Agent) -> None:
        holders = self._holders.get(model)
        if holders is not None:
            holders.pop(agent, None)
            if not holders:
                del self._holders[model]

    def _leave(self, address: Address) -> None:
        self._addresses[address] -= 1
        if self._addresses[address] <= 0:
            del self._addresses[address]

    def _find(self, agent: Agent, how: str, *, reported: bool = False, probed: bool = False) -> None:
        was_online = agent.online
        agent.reported_alive = agent.reported_alive or reported
        agent.probed = agent.probed or probed
        if not was_online:
            logger.info("Agent %s (%s) is online: it %s.", agent.name, agent.address, how)
            self._came_or_went(agent)
        self._place(agent)

    def _lose(self, agent: Agent, reason: str) -> None:
        was_online = agent.online
        agent.reported_alive = agent.probed = False
        self._probes.pop(agent, None)
        if was_online:
            agent.offline_reason = reason
            logger.warning("Agent %s (%s) is offline: %s.", agent.name, agent.address, reason)
            self._came_or_went(agent)
            self._place(agent)

    def _came_or_went(self, agent: Agent) -> None:
        self.generation += 1
        self.changed_models.update(agent.models or ())

    def expire(self) -> None:
        """Let go of what is no longer fresh. Costs a step for each report or probe that has run out."""
        now = self.clock()
        if now < self._next_expiry:
            return
        while self._reports:
            agent, at = next(iter(self._reports.items()))
            if now < at + self._stale_after:
                break
            del self._reports[agent]
            agent.fresh = False
            if agent.reported_alive:
                agent.reported_alive = False
                if not agent.probed:
                    agent.reported_alive = True
                    self._lose(agent, f"no report for {self._stale_after:g} s")
            for pool in agent.pools:
                pool.changed(agent)
        while self._probes:
            agent, at = next(iter(self._probes.items()))
            if now < at + PROBE_GRACE:
                break
            del self._probes[agent]
            agent.probed = False
            if not agent.reported_alive:
                agent.probed = True
                self._lose(agent, "no answer to probes")
        next_report = next(iter(self._reports.values()), math.inf) + self._stale_after
        next_probe = next(iter(self._probes.values()), math.inf) + PROBE_GRACE
        self._next_expiry = min(next_report, next_probe)
