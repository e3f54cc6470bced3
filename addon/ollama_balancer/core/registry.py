"""The agents of the fleet, what is known of each, and the choice among them.

When is an agent online? When a probe (not older than `PROBE_GRACE`) got an answer, or a report (not older than
`stale_after`) says that its Ollama answers and the balancer gets through to it: something has, and nothing has failed
to since. A request that could not reach it, or a report that its Ollama is down, ends that at once. Who reports and is
not reached is `unreachable`.

When is a request complete? When its lease is released: at the last byte, the error or the client's disconnect,
whichever comes first; a lease is released once. A lease for a model takes one of the agent's slots for it; an agent
that has none left is not chosen.

Does an agent serve? Its requests tell, by `failed` and `succeeded`: see `health`.
"""

from __future__ import annotations

import logging
import math
import random
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING

from agent_reporter.limits import NAME_PATTERN

from .address import Address
from .agent import HOT_CPU, RANK_SCALE, Agent, Outcome, Source, Status, Warm, agent_id
from .avoidance import REFUSED_SECONDS, Avoidance
from .concurrency import SlotLearner
from .decision import Decision, Option
from .demand import Demand
from .health import RETURNING, STRIKES, Phase
from .interning import SharedParts
from .leases import SUCCEEDED, Lease, SlotLease
from .observations import AnswerObservation
from .policies import DEFAULT_POLICY, POLICIES, Policy
from .policies.adaptive import Adaptive, Choice
from .pool import Pool
from .same_host import SameHost
from .scoring.agent_estimate import LONGEST_LOAD, Situation
from .scoring.learning import Learner

if TYPE_CHECKING:
    from agent_reporter.wire import AgentMetrics, ModelEntry

logger = logging.getLogger(__name__)

PROBE_GRACE = 13.0
"""Seconds for which a probe's answer holds: two missed probes, and a silent agent is offline within 15 s."""

MAX_POOLS = 256
"""Pools (one a model) kept at once for each policy; the one not asked for longest makes room."""

MAX_AGENTS = 200_000

_ROUND_ROBIN, _METRICS = POLICIES["roundrobin"], POLICIES["metrics"]

_NAME = re.compile(NAME_PATTERN)

_UNKNOWN = ""
"""The key of the pool of agents whose models are not known yet; no canonical model name is empty."""


CLOCK_DRIFT = 0.01
"""Seconds by which a host's clock may run off between two reports."""

LONGEST_DELAY = 60.0
"""Seconds: a report that seems to have taken longer comes from a host whose clock was set."""

LIST_SECONDS = 2.0
"""How long it may take a host to find out what it has in memory."""

MAX_LOADED = 100
"""Models that one agent is believed to have in memory."""

MAX_LEARNERS = 1000
"""Models whose slots are learned for one agent at once."""


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
        self._stale_after = stale_after
        self._slots = slots
        self._chance = chance
        self._must_reach = must_reach
        self._canonical_name = canonical_name
        self._policy = POLICIES[mode]
        self.learner = Learner()
        self._agents: dict[str, Agent] = {}
        self._names: dict[str, Agent] = {}
        self._addresses: Counter[Address] = Counter()
        self._next_number = 0
        self._pools: dict[str, dict[str | None, Pool]] = {name: {} for name in POLICIES}
        self._holders: dict[str, dict[Agent, None]] = {}
        self._shared = SharedParts()
        self._hosts = SameHost()
        self._unknown: dict[Agent, None] = {}
        """Those whose models are not known yet."""
        self.avoidance = Avoidance(clock)
        self._busy: dict[tuple[Agent, str], float] = {}
        """Until when an agent does not want requests of a model."""
        self._refused: dict[Agent, float] = {}
        """Until when agents are not used that do not let the balancer in."""
        self._unwell: dict[Agent, None] = {}
        """The ejected and the returning."""
        self.revision = 0
        """Grows when an agent is registered, moved, removed, drained or resumed."""
        self.on_room: Callable[[Agent, str], None] = lambda agent, model: None
        """Called when an agent may have a slot of that model free again."""
        self.waiting: Callable[[str], int] = lambda model: 0
        """How many requests wait for that model."""
        self.on_load: Callable[[Agent], object] = lambda agent: None
        """Called when an agent has loaded a model, for which it may have pushed out another."""
        self.on_change: Callable[[Agent], None] = lambda agent: None
        """Called when an agent may have begun or ceased to be one that serves, or serves other models."""
        self.on_unproven: Callable[[Agent], None] = lambda agent: None
        """Called when an agent begins to report that it is alive and is still to be reached: it wants a probe now."""
        # Both in the order of arrival, so that what expires first is in front.
        self._reports: OrderedDict[Agent, float] = OrderedDict()
        self._probes: OrderedDict[Agent, float] = OrderedDict()
        self._next_expiry = math.inf
        self._overlaps: dict[SlotLearner, tuple[Agent, str]] = {}
        """Those that may know more when an overlap has lasted."""
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
        self.check([name])
        agent = self._names.get(name)
        if agent is not None:
            if agent.address != address:
                self.revision += 1
                self._leave(agent.address)
                self._addresses[address] += 1
                agent.address = address
                self._lose(agent, "moved to a new address")
                agent.reachable, agent.unreached, agent.silent_since = not self._must_reach, "", None
                self.located(agent, None)
            if agent.draining_until_registration:
                self._resume(agent)
                self._regroup(self._hosts.settle(agent))
            return agent, False
        agent = Agent(name, address, source, self._next_number)
        self._next_number += 1
        self._agents[agent.id] = self._names[name] = agent
        self._unknown[agent] = None
        self.revision += 1
        agent.fixed_slots = self._slots
        agent.reachable = not self._must_reach
        self._addresses[address] += 1
        return agent, True

    def check(self, names: Collection[str], leaving: Collection[Agent] = ()) -> None:
        """Whether agents of these names could be registered together, once those that leave are gone. ValueError says
        why not.
        """
        new = [name for name in names if name not in self._names]
        others = {name for name, agent in self._names.items() if agent not in leaving} if leaving else self._names
        for name in new:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"name {name[:80]!r}: letters, digits and . _ : [ ] -, at most 64, beginning with a letter or digit"
                )
            own = agent_id(name)
            taken = self._agents.get(name)
            if (taken and taken not in leaving) or own in others or (len(new) > 1 and own in new):
                raise ValueError(f"name {name!r} is another agent's id: choose another name")
        if new and len(self._agents) - len(leaving) + len(new) > MAX_AGENTS:
            raise ValueError(f"the fleet has {MAX_AGENTS} agents, which is the most: delete some")

    def remove(self, agent: Agent) -> None:
        """Take an agent out of the fleet. Its running requests finish."""
        if agent.removed:
            return
        agent.removed = True
        self._regroup(self._hosts.move(agent, None))
        self.revision += 1
        self._agents.pop(agent.id, None)
        self._names.pop(agent.name, None)
        self._leave(agent.address)
        self._reports.pop(agent, None)
        self._probes.pop(agent, None)
        self._unknown.pop(agent, None)
        self._unwell.pop(agent, None)
        self._refused.pop(agent, None)
        self.avoidance.forget(agent)
        self._came_or_went(agent)
        self.learner.forget(agent)
        for model in agent.models or ():
            self._forget_holder(model, agent)
        self._place(agent)

    def drain(self, agent: Agent, *, until_registration: bool = False) -> None:
        """Send it no new requests; those that run finish. Its host's other names are drained with it, if it is not its
        reporter that ends.
        """
        for each in [agent] if until_registration else self._hosts.of(agent):
            self._drain(each, until_registration=until_registration)
        self._regroup(self._hosts.settle(agent))

    def _drain(self, agent: Agent, *, until_registration: bool) -> None:
        if not agent.draining:
            logger.info("Agent %s is draining: no new requests, %d in flight.", agent.name, agent.in_flight)
            agent.draining = True
            agent.draining_until_registration = until_registration
        elif not until_registration:
            agent.draining_until_registration = False
        self.revision += 1
        self._place(agent)

    def resume(self, agent: Agent) -> None:
        """Send it requests again, and its host's other names."""
        for each in self._hosts.of(agent):
            self._resume(each)
        self._regroup(self._hosts.settle(agent))

    def _resume(self, agent: Agent) -> None:
        if agent.draining:
            logger.info("Agent %s is resumed%s.", agent.name, "" if agent.online else ", though it is offline")
            self.revision += 1
        agent.draining = agent.draining_until_registration = False
        self._place(agent)

    # What is heard of the agents

    @property
    def slots(self) -> int:
        """The requests that an agent may run at once per model; 0: what its report says, else learned."""
        return self._slots

    @slots.setter
    def slots(self, slots: int) -> None:
        self._slots = slots
        for agent in list(self._agents.values()):
            self._fix_slots(agent)

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
        before = agent.metrics.max_loaded_models if agent.metrics is not None else None
        if metrics.max_loaded_models != before:
            agent.epoch += 1
        agent.metrics = metrics
        agent.metrics_at = now
        agent.reported_active = metrics.active_requests
        agent.base_rank = round(metrics.cpu_usage * RANK_SCALE) + round(metrics.memory_usage * RANK_SCALE)
        agent.hot = metrics.cpu_usage > HOT_CPU
        agent.fresh = True
        if agent.fixed_slots != (self._slots or metrics.num_parallel or 0):
            self._fix_slots(agent)
        self._reports[agent] = now
        self._reports.move_to_end(agent)
        if now + self._stale_after < self._next_expiry:
            self._next_expiry = now + self._stale_after
        if metrics.loaded_models is not None:
            self.update_loaded(agent, metrics.loaded_models, self._made_at(agent, metrics, now) - LIST_SECONDS)
        if metrics.ollama_version is not None:
            self.update_version(agent, metrics.ollama_version)
        if metrics.models is not None:
            self.update_models(agent, metrics.models)
        if metrics.ollama_ok is False:
            self._lose(agent, "its reporter says that Ollama does not answer there")
        elif not agent.reported_alive:
            self._find(agent, "reports", reported=True)
            if not agent.reachable:
                self.on_unproven(agent)
        if agent.host_key is not None:
            self._regroup(self._hosts.settle(agent))
        for pool in agent.pools:
            pool.changed(agent)
        return True

    def update_models(self, agent: Agent, entries: list[ModelEntry]) -> None:
        """Store which models the agent has. Of a list that has not changed the known entries take the place."""
        old = agent.models
        names = [entry.name for entry in entries]
        if old is not None and names == agent.model_names and len(old) == len(entries):
            for (model, known), entry in zip(old.items(), entries, strict=True):
                if known.model_extra != entry.model_extra:
                    old[model] = self._shared.share(entry)
                    self.changed_models.add(model)
            entries[:] = old.values()
            return
        entries[:] = map(self._shared.share, entries)
        old = old or {}
        new = {self._canonical_name(entry.name): entry for entry in entries}
        agent.models = new
        agent.model_names = names
        if agent.removed:
            return
        self._unknown.pop(agent, None)
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

    @staticmethod
    def _made_at(agent: Agent, metrics: AgentMetrics, now: float) -> float:
        """When a report was made, on the registry's clock: how much later it came than the quickest one tells."""
        lead = now - metrics.timestamp.timestamp()
        # The two clocks drift: what was quickest once counts for less and less.
        agent.clock_lead = min(lead, agent.clock_lead + CLOCK_DRIFT)
        if lead - agent.clock_lead > LONGEST_DELAY:
            agent.clock_lead = lead
        return now - (lead - agent.clock_lead)

    def update_loaded(self, agent: Agent, entries: list[ModelEntry], as_of: float | None = None) -> None:
        """Store which models the agent has in memory, as of then on the registry's clock, or now.

        A list that is older than what is known is dropped. What an answer has proven since, or proves now, is in memory
        whatever an older list says.
        """
        now = self.clock()
        if as_of is not None and as_of < agent.loaded_at:
            return
        agent.loaded_at = now if as_of is None else as_of
        as_of = min(agent.loaded_at, now - LIST_SECONDS)
        given, entries = entries, entries[:MAX_LOADED]
        if not agent.memory_known:
            agent.memory_known = True
            agent.epoch += 1
        if entries != agent.loaded:
            given[:MAX_LOADED] = agent.loaded = entries = list(map(self._shared.share, entries))
            self.generation += 1
        else:
            given[:MAX_LOADED] = agent.loaded
        old, names = agent.warm, [entry.name for entry in entries]
        if names != agent.loaded_names:
            agent.loaded_names = names
            agent.listed = dict.fromkeys(map(self._canonical_name, names))
            if len(names) > agent.most_loaded:
                agent.most_loaded = len(names)
                agent.epoch += 1
        if old.keys() == agent.listed.keys():
            return
        new = {name: old.get(name) or Warm() for name in agent.listed}
        for name, warm in old.items():
            if name in agent.running or warm.proven_at > as_of:
                new.setdefault(name, warm)
        if new.keys() != old.keys():
            for name in old.keys() - new.keys():
                old[name].gone = True
            agent.warm = new
            self._replace(agent)

    def unloaded(self, agent: Agent, model: str) -> None:
        """The agent has said that it takes the model (a canonical name) out of memory, when nothing more runs on it."""
        if agent.removed or model in agent.running:
            return
        warm = agent.warm.get(model)
        if warm is not None:
            warm.gone = True
            agent.warm = {name: other for name, other in agent.warm.items() if name != model}
            self._replace(agent)
        if model in agent.listed:
            self.update_loaded(agent, [entry for entry in agent.loaded if self._canonical_name(entry.name) != model])

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

    def located(self, agent: Agent, key: Hashable | None) -> None:
        """Where the agent's host listens: two that have an equal key are one host. None: it is not known."""
        if agent.removed:
            return
        known = agent.host_key
        self._regroup(self._hosts.move(agent, key))
        together = self._hosts.of(agent)
        if key != known and len(together) > 1:
            logger.warning(
                "Agents %s are one host: only %s gets requests, with one set of slots. Remove the others.",
                " and ".join(f"{each.name} ({each.address})" for each in together[:8]),
                (agent.alias_of or agent).name,
            )

    def _regroup(self, changed: Iterable[Agent]) -> None:
        """These are aliases now, or are no longer."""
        for agent in changed:
            self._came_or_went(agent)
            self._place(agent)

    def reached(self, agent: Agent) -> None:
        """The agent answered a probe, or a request."""
        if agent.removed:
            return
        now = self.clock()
        self._probes[agent] = now
        self._probes.move_to_end(agent)
        self._next_expiry = min(self._next_expiry, now + PROBE_GRACE)
        if not agent.probed:
            self._find(agent, "answers", probed=True)
        agent.reachable, agent.unreached, agent.silent_since = True, "", None

    def unreachable(self, agent: Agent, reason: str) -> None:
        """A request or a probe was refused or found nobody: not online until something gets through."""
        self._lose(agent, reason, found_nobody=True)

    def silent(self, agent: Agent, reason: str) -> None:
        """A probe got no usable answer. That is given `PROBE_GRACE` where something got through before."""
        if agent.removed:
            return
        now = self.clock()
        agent.unreached = reason
        if agent.silent_since is None:
            agent.silent_since = now
        if not agent.online or (not agent.probed and now - agent.silent_since >= PROBE_GRACE):
            self._lose(agent, reason, found_nobody=True)

    def refuses(self, agent: Agent, reason: str, seconds: float | None = None) -> None:
        """The agent, or a proxy in front of it, does not let the balancer in: it is not used for so long."""
        seconds = REFUSED_SECONDS if seconds is None else seconds
        if agent.removed:
            return
        if agent.refusal is None:
            logger.warning(
                "Agent %s (%s) is unauthorized, and not used for %g s: %s.", agent.name, agent.address, seconds, reason
            )
        agent.refusal = reason
        until = self.clock() + seconds
        until = self._refused[agent] = max(until, self._refused.get(agent, until))
        self._next_expiry = min(self._next_expiry, until)
        self._place(agent)

    def busy(self, agent: Agent, model: str, seconds: float) -> None:
        """The agent wants no more requests of the model (a canonical name) for so long: they wait, or go elsewhere."""
        if agent.removed:
            return
        until = self.clock() + seconds
        self._busy[agent, model] = max(until, self._busy.get((agent, model), until))
        self._next_expiry = min(self._next_expiry, until)
        agent.epoch += 1
        self._refit(agent, model)

    def failed(self, lease: Lease, reason: str) -> None:
        """The agent failed at the request, which still holds its lease: a strike. See `health`."""
        agent = lease.agent
        if lease.model is None or agent.removed:
            return
        trial = agent.trial is lease
        again = agent.health.phase is not Phase.HEALTHY
        now = self.clock()
        if agent.health.failed(
            now, reason, chance=self._chance(), trial=trial, may_eject=trial or self._can_spare_one()
        ):
            logger.warning(
                "Agent %s is ejected for %.0f s: %s, %s.",
                agent.name,
                agent.health.until - now,
                "it failed when it was tried again" if again else f"{agent.health.strikes} failures in a row",
                f"the last: {reason}",
            )
            agent.stats.ejections += 1
            self._gate(agent)
            self._place(agent)
        elif agent.health.phase is Phase.RETURNING or (
            agent.health.phase is Phase.HEALTHY and agent.health.strikes >= STRIKES
        ):
            self.avoidance.fails(agent)

    def answered(self, lease: Lease, answer: AnswerObservation) -> None:
        """The answer of a request, which still holds its lease, is whole: learn from it."""
        if isinstance(lease, SlotLease) and not lease.agent.removed:
            self.learner.answered(lease, answer, self.clock())
            lease.agent.epoch += 1

    def succeeded(self, lease: Lease) -> None:
        """The agent served the request, which still holds its lease, whole."""
        agent = lease.agent
        if lease.model is None:
            return
        if isinstance(lease, SlotLease):
            self.avoidance.served(agent, lease.model, lease.demand.runner)
        if agent.health.succeeded(self.clock(), trial=agent.trial is lease) and not agent.removed:
            logger.info(
                "Agent %s returns: it served again; for %g s it gets no more than it runs at once.",
                agent.name,
                RETURNING,
            )
            self._gate(agent)
            self._place(agent)

    def wants_probe(self, agent: Agent) -> bool:
        """Whether a probe is to tell what no report tells: an agent without recent reports, or without known models."""
        if agent.models is None or not agent.online or agent.metrics is None or agent.metrics.loaded_models is None:
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
        Candidates are online, not draining, not ejected, have the model and a slot for it; those whose models are not
        known yet come after them. None: no candidate. The choice takes no lease.
        """
        return self._select(self._policy, model, exclude)

    def select_agent(self, model: str | None = None, exclude: Collection[Agent] = ()) -> Agent | None:
        """Round robin: online agents in turn, `index % len(online)`."""
        return self._select(_ROUND_ROBIN, model, exclude)

    def select_agent_by_metrics(self, model: str | None = None, exclude: Collection[Agent] = ()) -> Agent | None:
        """Lowest `cpu_usage + memory_usage + active_requests * 10`; see `policies.metrics`."""
        return self._select(_METRICS, model, exclude)

    def choose(self, demand: Demand, exclude: Collection[Agent] = (), *, ahead: int = 0, waited: float = 0.0) -> Choice:
        """The agent for a request that has waited so many seconds with so many ahead of it; None: it is to wait.

        As `select`, and in the mode that goes by it, with what else is known of the request.
        """
        policy = self._policy
        if isinstance(policy, Adaptive):
            now = self.clock()
            if now >= self._next_expiry:
                self.expire()
            pool = self._pool(policy, demand.model)
            if pool is not None and len(pool):
                pool.used = now
                at = Situation(self.learner, now, self.waiting, self._chance)
                choice = policy.choose(pool, exclude, demand, at, ahead=ahead, waited=waited)
                if choice is not None:
                    unknown = self._select_unknown(policy, demand.model, exclude) if choice.agent is None else None
                    return choice if unknown is None else Choice(unknown)
        return Choice(self._select(policy, demand.model, exclude))

    def take(
        self,
        agent: Agent,
        model: str | None = None,
        demand: Demand | None = None,
        options: tuple[Option, ...] = (),
    ) -> Lease:
        """Count a request in flight on the agent, from now on; with a model (a canonical name), in a slot of it.

        `options` is how it was chosen, for who is to be told.
        """
        agent.in_flight += 1
        for board in agent.boards:
            board.update(agent)
        if model is None:
            return Lease(agent)
        lease = SlotLease(agent, self, demand or Demand(model), self.clock(), options)
        if options:
            agent.decision = Decision(lease.taken_at, model, options)
        self._take_slot(lease, agent, model)
        return lease

    def has_room(self, agent: Agent, model: str) -> bool:
        """Whether the agent may get a request of the model now."""
        return agent.eligible and model not in agent.full

    def all_busy(self, model: str) -> bool:
        """Whether there are candidates for the model, and none of them has a slot free: `choose` would find nobody."""
        pool = self._pool(self._policy, model)
        return pool is not None and pool.all_full and not self._unknown

    def least_bad(self, model: str, exclude: Collection[Agent] = ()) -> Agent | None:
        """Where all that could serve the model are ejected: the one to be tried next, if none is tried at this moment.

        None as well where one is there that is not ejected, and is only busy: but not with a load that seems stuck.
        """
        best: Agent | None = None
        for agent in self._candidates(model):
            if not agent.available or agent in exclude:
                continue
            if agent.health.phase is not Phase.EJECTED:
                if model in agent.full and self._loads_too_long(agent, model):
                    continue
                return None
            if (
                agent.trial is None
                and model not in agent.full
                and (best is None or agent.health.until < best.health.until)
            ):
                best = agent
        return best

    def _loads_too_long(self, agent: Agent, model: str) -> bool:
        """Whether the agent has begun to load the model so long ago that it is not known when that will be over."""
        since = agent.loading.get(model)
        usual = self.learner.estimates.load.value(agent.id, model)
        return since is not None and self.clock() - since >= LONGEST_LOAD * usual

    def could_serve(self, model: str, exclude: Collection[Agent] = ()) -> bool:
        """Whether there is an agent that may serve the model when its turn comes: it may be busy or ejected now."""
        return any(agent.available and agent not in exclude for agent in self._candidates(model))

    def serves_soon(self, model: str, exclude: Collection[Agent] = ()) -> bool:
        """As `could_serve`, without the agents that are full and whose load of the model seems stuck."""
        return any(
            agent.available
            and agent not in exclude
            and not (model in agent.full and self._loads_too_long(agent, model))
            for agent in self._candidates(model)
        )

    def _candidates(self, model: str) -> Iterator[Agent]:
        yield from self._holders.get(model, ())
        yield from self._unknown

    def has_model(self, model: str) -> bool:
        """Whether any agent, in whatever state, is known to have the model."""
        return model in self._holders

    def may_have_unknown_models(self) -> bool:
        """Whether there is an agent, in whatever state, whose models are not known yet."""
        return bool(self._unknown)

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
        return None if model is None else self._select_unknown(policy, model, exclude)

    def _select_unknown(self, policy: Policy, model: str, exclude: Collection[Agent]) -> Agent | None:
        """Of those whose models are not known yet."""
        if not self._unknown:
            return None
        exclude = [*exclude, *(agent for agent in self._unknown if model in agent.full)]
        return policy.select(self._pool(policy, _UNKNOWN) or Pool(policy.name, policy.rank), exclude)

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
        pool = pools[model] = Pool(policy.name, policy.rank, model)
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
        self._replace(agent)
        for pools in self._pools.values():
            for model, pool in pools.items():
                if self._belongs(agent, model):
                    pool.add(agent)
                else:
                    pool.discard(agent)
        self.on_change(agent)

    # Slots and health

    def _replace(self, agent: Agent) -> None:
        """Other models are in its memory, or it may be used or not be used."""
        agent.epoch += 1
        self.learner.placement.update(agent)

    def _take_slot(self, lease: SlotLease, agent: Agent, model: str) -> None:
        agent.running[model] = agent.running.get(model, 0) + 1
        if not agent.fixed_slots:
            learner = agent.learners.get(model)
            if learner is None and len(agent.learners) < MAX_LEARNERS:
                learner = agent.learners[model] = SlotLearner()
            if learner is not None:
                lease.learner = learner
                learner.sent(lease)
        use = self.learner.placement.use(model)
        use.asked(lease.taken_at)
        use.changed(1, self.waiting(model), lease.taken_at)
        lease.sole = len(agent.running) == 1 and agent.running[model] == 1
        warm = agent.warm.get(model)
        if warm is None or not (warm.runner is None or warm.runner == lease.demand.runner):
            lease.loading = lease.cold = True
            agent.loaders[model] = agent.loaders.get(model, 0) + 1
            if model not in agent.loading and agent.memory_known:
                agent.loading[model] = lease.taken_at
                self._replace(agent)
        if lease.demand.steps:
            last, known = self.learner.conversations.find(lease.demand.steps)
            lease.known_tokens = known if last is agent and known <= lease.demand.tokens else 0
        agent.epoch += 1
        self._refit(agent, model)
        if agent.health.phase is not Phase.HEALTHY:
            if agent.health.phase is Phase.EJECTED and agent.trial is None:
                agent.trial = lease
            self._gate(agent)

    def answer_began(self, lease: SlotLease) -> None:
        agent, model = lease.agent, lease.model
        if not agent.reachable or agent.silent_since is not None:
            self.reached(agent)
        lease.began_at = self.clock()
        loaded = False
        if lease.loading:
            self._loads_no_more(lease)
            loaded = agent.loading.pop(model, None) is not None
        warm = agent.warm.get(model)
        if warm is None:
            warm = agent.warm[model] = Warm(lease.demand.runner, lease.began_at)
            self._replace(agent)
        else:
            if warm.runner not in (None, lease.demand.runner):
                # It was loaded anew, and knows no prompt.
                warm.gone = True
                warm = agent.warm[model] = Warm()
            warm.runner, warm.proven_at = lease.demand.runner, lease.began_at
        if lease.demand.tokens and not lease.known_tokens:
            warm.reads += 1
        if lease.demand.remember and not agent.removed:
            slots = agent.slots_for(model)
            self.learner.conversations.remember(lease.demand.remember, agent, warm, slots)
        lease.slow = agent.slowness(model)
        agent.epoch += 1
        if loaded:
            # It held up all others there.
            self.on_change(agent)
            self.on_load(agent)
        learner = lease.learner
        if learner is not None:
            limit = learner.limit
            learner.began(lease, lease.began_at)
            self._watch_overlap(agent, model, learner)
            if learner.limit != limit:
                self._refit(agent, model)
                self.on_room(agent, model)
        if agent.health.phase is not Phase.HEALTHY:
            self._gate(agent)

    def lease_ended(self, lease: SlotLease, outcome: Outcome | None) -> None:
        agent, model = lease.agent, lease.model
        given_up = False
        left = agent.running[model] - 1
        if left:
            agent.running[model] = left
        else:
            del agent.running[model]
        if lease.loading:
            self._loads_no_more(lease)
            warm = agent.warm.get(model)
            if warm is not None and warm.runner not in (None, lease.demand.runner):
                # It may have been loaded anew before the request ended: nothing but an answer tells.
                warm.runner = None
            if model in agent.loading:
                # The load was this request's, or another's that was behind it: that begins anew.
                if model in agent.loaders:
                    agent.loading[model] = self.clock()
                else:
                    del agent.loading[model]
                    self._replace(agent)
                    given_up = True
        self.learner.placement.use(model).changed(-1, self.waiting(model), self.clock())
        agent.epoch += 1
        if lease.learner is not None:
            now = self.clock()
            if outcome is SUCCEEDED and lease.began_at is None:
                lease.learner.began(lease, now)
                self._watch_overlap(agent, model, lease.learner)
            # A load holds up all that have come after it.
            lease.learner.ended(lease, now, whole=outcome is SUCCEEDED and not agent.loading)
        self._refit(agent, model)
        if agent.trial is lease:
            agent.trial = None
        if agent.health.phase is not Phase.HEALTHY:
            self._gate(agent)
        if given_up:
            self.on_change(agent)  # it held up all others there
        self.on_room(agent, model)

    @staticmethod
    def _loads_no_more(lease: SlotLease) -> None:
        lease.loading = False
        loaders, model = lease.agent.loaders, lease.model
        loaders[model] -= 1
        if not loaders[model]:
            del loaders[model]

    def _refit(self, agent: Agent, model: str) -> None:
        """Have the pools know whether the agent has a slot of the model free."""
        slots = agent.slots_for(model)
        full = agent.running.get(model, 0) >= slots or (bool(self._busy) and (agent, model) in self._busy)
        changed = full is not (model in agent.full)
        if changed:
            agent.epoch += 1
            (agent.full.add if full else agent.full.discard)(model)
            for pools in self._pools.values():
                if (pool := pools.get(model)) is not None:
                    (pool.fill if full else pool.free)(agent)
        if changed or not agent.fixed_slots:
            self.learner.placement.refit(agent, model, slots)

    def _watch_overlap(self, agent: Agent, model: str, learner: SlotLearner) -> None:
        """Have it told when an overlap that it has seen has lasted."""
        due = learner.due
        if due < math.inf:
            self._overlaps[learner] = agent, model
            self._next_expiry = min(self._next_expiry, due)

    def _expire_overlaps(self, now: float) -> None:
        for learner, (agent, model) in list(self._overlaps.items()):
            changed = learner.passed(now)
            if learner.due == math.inf or agent.learners.get(model) is not learner:
                self._overlaps.pop(learner, None)
            if changed and agent.learners.get(model) is learner:
                self._refit(agent, model)
                if agent.health.phase is not Phase.HEALTHY:
                    self._gate(agent)
                self.on_room(agent, model)

    def _fix_slots(self, agent: Agent) -> None:
        """How many requests it runs at once may be known otherwise now."""
        reported = agent.metrics.num_parallel if agent.metrics else None
        agent.fixed_slots = self._slots or reported or 0
        self._replace(agent)
        for model in list(agent.running):
            self._refit(agent, model)
            self.on_room(agent, model)

    def _can_spare_one(self) -> bool:
        """Whether at most half of the agents that may be used would be ejected with one more."""
        usable = sum(agent.available for agent in self._agents.values())
        ejected = sum(agent.available and agent.health.phase is Phase.EJECTED for agent in self._unwell)
        return 2 * (ejected + 1) <= usable

    def _gate(self, agent: Agent) -> None:
        """Close or open an agent, as its health allows at this moment."""
        if agent.removed:
            return
        health, now = agent.health, self.clock()
        match health.phase:
            case Phase.HEALTHY:
                closed = False
                self._unwell.pop(agent, None)
            case Phase.EJECTED:
                closed = now < health.until or agent.trial is not None
            case Phase.RETURNING:
                at_once = agent.fixed_slots or max((learner.limit for learner in agent.learners.values()), default=2)
                closed = bool(agent.loaders) or sum(agent.running.values()) >= at_once
        if health.phase is not Phase.HEALTHY:
            self._unwell[agent] = None
            if health.until > now:
                self._next_expiry = min(self._next_expiry, health.until)
        if closed is not agent.closed:
            agent.closed = closed
            self._place(agent)

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
        if not was_online and agent.online:
            agent.said = Status.ONLINE
            if agent.draining:
                until = "its reporter registers" if agent.draining_until_registration else "it is resumed"
                words = f"{how} and is still draining: it gets no new requests until {until}"
            else:
                words = f"is online: it {how}"
            logger.info("Agent %s (%s) %s.", agent.name, agent.address, words)
            self._came_or_went(agent)
            if agent.was_online and agent.health.phase is not Phase.EJECTED:
                agent.health.came_back(self.clock())
                self._gate(agent)
            agent.was_online = True
            self._regroup(self._hosts.settle(agent))
        self._place(agent)

    def _lose(self, agent: Agent, reason: str, *, found_nobody: bool = False, refused: bool = False) -> None:
        """It is not online: nobody was found there, or nobody was let in, or reports say no more that it is alive."""
        was_online = agent.online
        if not refused:
            agent.refusal = None
            self._refused.pop(agent, None)
        self.avoidance.forget(agent)
        agent.probed = False
        self._probes.pop(agent, None)
        if found_nobody:
            agent.reachable, agent.unreached = False, reason
        else:
            agent.reported_alive = False
        status = agent.status
        if was_online or status is not agent.said:
            agent.offline_reason = reason
            what = "not there" if agent.said is None and status is Status.OFFLINE else status
            logger.warning("Agent %s (%s) is %s: %s.", agent.name, agent.address, what, reason)
            agent.said = status
        if was_online:
            agent.learners = {}
            for model in agent.running:
                self._refit(agent, model)
            for warm in agent.warm.values():
                warm.gone = True
            agent.warm = {}
            agent.memory_known = False
            agent.loaded_at = -math.inf
            self._replace(agent)
            self._came_or_went(agent)
            self._place(agent)
            self._regroup(self._hosts.settle(agent))

    def _came_or_went(self, agent: Agent) -> None:
        self.generation += 1
        self.changed_models.update(agent.models or ())

    def expire(self) -> None:
        """Let go of what is no longer fresh. Costs a step for each report or probe that has run out."""
        now = self.clock()
        if now < self._next_expiry:
            return
        self._next_expiry = math.inf  # who is told of a change may ask for an agent, which comes here again
        try:
            self._expire_reports(now)
            self._expire_probes(now)
            self._expire_refusals(now)
            for agent in list(self._unwell):
                if agent.health.passed(now):
                    logger.info("Agent %s is healthy again.", agent.name)
                self._gate(agent)
            self._expire_overlaps(now)
        finally:
            next_report = next(iter(self._reports.values()), math.inf) + self._stale_after
            next_probe = next(iter(self._probes.values()), math.inf) + PROBE_GRACE
            next_turn = min((a.health.until for a in self._unwell if a.health.until > now), default=math.inf)
            next_refusal = min((*self._refused.values(), *self._busy.values()), default=math.inf)
            next_overlap = min((learner.due for learner in self._overlaps), default=math.inf)
            self._next_expiry = min(next_report, next_probe, next_turn, next_refusal, next_overlap)

    def _expire_reports(self, now: float) -> None:
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

    def _expire_refusals(self, now: float) -> None:
        for agent in [agent for agent, until in self._refused.items() if until <= now]:
            del self._refused[agent]
            agent.refusal = None
            self._place(agent)
        for agent, model in [key for key, until in self._busy.items() if until <= now]:
            del self._busy[agent, model]
            agent.epoch += 1
            self._refit(agent, model)
            if not agent.removed:
                self.on_room(agent, model)

    def _expire_probes(self, now: float) -> None:
        while self._probes:
            agent, at = next(iter(self._probes.items()))
            if now < at + PROBE_GRACE:
                break
            del self._probes[agent]
            agent.probed = False
            if not agent.online:
                agent.probed = True
                if agent.refusal is not None:
                    self._lose(agent, agent.refusal, refused=True)
                elif agent.unreached:
                    self._lose(agent, f"no answer to probes: {agent.unreached}", found_nobody=True)
                else:
                    self._lose(agent, "no answer to probes")
