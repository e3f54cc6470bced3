"""An agent: one Ollama host as the balancer sees it."""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from .address import Address
from .agent_records import LoadedModel, Rates, Statistics
from .concurrency import SlotLearner
from .decision import Decision
from .health import Health, Phase
from .kept_prompts import KeptPrompts
from .memory import Memory
from .report_delay import ReportDelay
from .scoreboard import Scoreboard
from .unlisted import Unlisted

if TYPE_CHECKING:
    from agent_reporter.wire import AgentMetrics, ModelEntry

HOT_CPU = 80.0
"""Percent of CPU above which a host counts as busy: the rule of the mode `metrics`, as the README has it."""

RANK_SCALE = 1000
"""Ranks are scores in thousandths, so that they are exact integers and equal scores are equal ranks."""

ACTIVE_REQUEST_SCORE = 10
"""What one active request adds to the score: the formula of the mode `metrics`, as the README has it."""

ACTIVE_REQUEST_RANK = ACTIVE_REQUEST_SCORE * RANK_SCALE

SLOWDOWN = 0.4
"""The slowdown of requests of one model by each further request that runs beside them.

Source: the sample results in the README of llama.cpp's batched-bench (LLaMA 7B, F16): 2 at once take 1.63 times as long
each, 4 take 2.23, 8 take 2.39, which is 0.63, 0.41 and 0.20. `--tune agent.SLOWDOWN`: flat from 0.1 to 1 where that of
the hosts is 0.4, and where it is 0.1 or 1 (`agent.SLOWDOWN@gentle`, `agent.SLOWDOWN@steep`): it need not be learned."""

NOT_HEARD_OF = "not contacted yet"


class Source(StrEnum):
    STATIC = "static"
    REGISTERED = "registered"
    DEMO = "demo"
    LOCAL = "local"


class Status(StrEnum):
    ONLINE = "online"
    OFFLINE = "offline"
    UNREACHABLE = "unreachable"
    """It reports, but the balancer cannot connect to it."""
    UNAUTHORIZED = "unauthorized"
    """It, or a proxy in front of it, refuses the balancer's credentials."""
    EJECTED = "ejected"
    DRAINING = "draining"


def size_of(entry: ModelEntry) -> int:
    """Bytes, as a list gives them; 0: it does not."""
    size = (entry.model_extra or {}).get("size")
    return size if type(size) is int and size > 0 else 0


def agent_id(name: str) -> str:
    """The id of the agent of that name: the same in every run."""
    return uuid.uuid5(uuid.UUID("6f6c6c61-6d61-5062-616c-616e63657221"), name).hex[:12]


class Ranking(Protocol):
    """Something that ranks agents by their metrics."""

    def changed(self, agent: Agent) -> None:
        """The agent's metrics have changed, or have expired."""


@dataclass(eq=False, slots=True)
class Agent:
    """One Ollama host. Only the core changes it; equality is identity."""

    name: str
    address: Address
    source: Source
    number: int
    """Its place in the order of registration."""
    id: str = field(init=False)
    host_key: Hashable | None = None
    """Identifies its host, where that is known: equal for two agents that are one host."""
    alias_of: Agent | None = None
    """The agent that represents the host that both are: it gets the requests."""
    instance: str | None = None
    """Of the reporter that registered it last."""
    key: str | None = None
    """The name of the client key that reports for it; None: any that may."""
    models: dict[str, ModelEntry] | None = None
    """The models it has, by canonical name; None: not known yet."""
    model_names: list[str] = field(default_factory=list)
    loaded: list[ModelEntry] = field(default_factory=list)
    loaded_at: float = float("-inf")
    """As of when that is known, on the registry's clock."""
    loaded_names: list[str] = field(default_factory=list)
    listed: dict[str, ModelEntry] = field(default_factory=dict)
    """The same by canonical name, as they were when these names came first."""
    unlisted: Unlisted = field(default_factory=Unlisted)
    version: str | None = None
    loaded_models: dict[str, LoadedModel] = field(default_factory=dict)
    """Models (canonical names) that are loaded, as far as is known."""
    loading: dict[str, float] = field(default_factory=dict)
    """Models that are being loaded, and since when."""
    evicting: set[str] = field(default_factory=set)
    """Of those, the models for which it has to evict another one, and is not known to have done so."""
    restarted: set[str] = field(default_factory=set)
    """Of those it is loading, the models whose load has begun anew since the request that caused it left."""
    memory_known: bool = False
    """Whether its loaded models are known since it came online."""
    report_delay: ReportDelay = field(default_factory=ReportDelay)
    rates: dict[str, Rates] = field(default_factory=dict)
    """By model, the rates after its last answer: a copy of the estimates, for fast access."""
    memory: Memory = field(default_factory=Memory)
    placed: set[str] = field(default_factory=set)
    """Models for which the fleet's placement counts it."""
    epoch: int = 0
    """Grows when something changes that an estimate depends on."""
    in_flight: int = 0
    running: dict[str, int] = field(default_factory=dict)
    """Requests in flight by model, of those that take a slot."""
    answering: dict[str, int] = field(default_factory=dict)
    """Of those, the ones whose answer has begun."""
    own_slots: int | None = None
    """Those configured for this agent alone; None: as for all, 0: as reported or learned."""
    fixed_slots: int = 0
    """Requests it runs at once per model, as configured or reported; 0: learned."""
    learners: dict[str, SlotLearner] = field(default_factory=dict)
    kept_prompts: KeptPrompts = field(default_factory=KeptPrompts)
    full: set[str] = field(default_factory=set)
    """Models that have no free slot."""
    loaders: dict[str, int] = field(default_factory=dict)
    """Requests in flight that wait for their model to load, by model."""
    heard_at: float = float("-inf")
    """When a byte of any answer of its came, or one ended, on the registry's clock."""
    health: Health = field(default_factory=Health)
    half_open_lease: object = None
    """The lease of the request that probes it while it is ejected; None: there is none."""
    closed: bool = False
    """Whether its circuit breaker is open, or its slow start is at its limit."""
    decision: Decision | None = None
    """Why the last scored request went there."""
    refusal: str | None = None
    """Why it is not used for a while: it refuses the balancer's credentials."""
    was_online: bool = False
    draining: bool = False
    draining_until_registration: bool = False
    drained_by_configuration: bool = False
    """Whether the configuration drains it, and nobody else does."""
    removed: bool = False
    offline_reason: str = NOT_HEARD_OF
    reported_alive: bool = False
    """Whether a fresh report says that its Ollama answers."""
    probed: bool = False
    """Whether it has answered a recent probe."""
    reachable: bool = True
    """Whether no connection has failed since the last one that succeeded."""
    unreached: str = ""
    """Why the last connection failed; empty once one succeeds."""
    silent_since: float | None = None
    """Time of the first unanswered probe since the last contact."""
    logged_status: Status | None = None
    """Online, offline or unreachable, as last logged."""
    metrics: AgentMetrics | None = None
    metrics_at: float = 0.0
    fresh: bool = False
    hot: bool = False
    base_rank: int = 0
    reported_active: int = 0
    stats: Statistics = field(default_factory=Statistics)
    pools: list[Ranking] = field(default_factory=list)
    boards: list[Scoreboard[Agent]] = field(default_factory=list)
    """The scoreboards of `pools` on which it has a place: each request's begin and end update them."""

    def __post_init__(self) -> None:
        self.id = agent_id(self.name)

    def __repr__(self) -> str:
        return f"Agent({self.name}, {self.status}, {self.in_flight} in flight)"

    @property
    def online(self) -> bool:
        """A fresh report or a recent probe says that its Ollama answers, and the balancer can connect to it."""
        return (self.reported_alive and self.reachable) or self.probed

    @property
    def status(self) -> Status:
        if not self.online:
            if self.refusal is not None:
                return Status.UNAUTHORIZED
            return Status.UNREACHABLE if self.reported_alive else Status.OFFLINE
        if self.draining:
            return Status.DRAINING
        if self.refusal is not None:
            return Status.UNAUTHORIZED
        return Status.EJECTED if self.health.phase is Phase.EJECTED else Status.ONLINE

    @property
    def available(self) -> bool:
        """Online and usable, though perhaps not now: it may be ejected, or all its slots may be taken."""
        return self.online and self.alias_of is None and not (self.draining or self.removed or self.refusal)

    @property
    def eligible(self) -> bool:
        """May get new requests now, of models it has a free slot for."""
        if not self.probed and not (self.reported_alive and self.reachable):
            return False
        return not (self.draining or self.removed or self.closed or self.refusal or self.alias_of is not None)

    @property
    def reason(self) -> str | None:
        """Why its status is not plainly online."""
        if self.alias_of is not None and self.status is Status.ONLINE:
            other = self.alias_of
            return f"the same host as {other.name} ({other.address}), which gets its requests: remove one of the two"
        match self.status:
            case Status.OFFLINE:
                return self.offline_reason
            case Status.UNAUTHORIZED:
                return self.refusal
            case Status.UNREACHABLE:
                return self.unreached or f"it reports, but has not been reached at {self.address} yet"
            case Status.DRAINING if self.drained_by_configuration:
                return "the fleet file drains it, or its name in DNS no longer leads to it"
            case Status.EJECTED:
                return self.health.reason
            case Status.ONLINE if self.health.phase is Phase.SLOW_START:
                return "slow start: for a while it gets no more requests than it can run at once"
            case _:
                return None

    # Events. Only the core calls these.

    def registered_by(self, instance: str | None) -> None:
        """Its reporter has registered: `instance` tells this run of it from others."""
        self.instance = instance

    def bound_to(self, key: str) -> None:
        """Who reports for it presents the client key of that name."""
        self.key = key

    def moved(self, address: Address) -> None:
        """It listens elsewhere now."""
        self.address = address

    def contact_unknown(self, *, reachable: bool) -> None:
        """Nothing has been sent to its address yet; whether it counts as reachable until then."""
        self.reachable, self.unreached, self.silent_since = reachable, "", None

    def located(self, key: Hashable | None) -> None:
        self.host_key = key

    def alias_changed(self, stands_for: Agent | None) -> None:
        self.alias_of = stands_for

    def drain_started(self, *, until_registration: bool, configured: bool = False) -> None:
        """It gets no new requests.

        An operator's drain overrides one by the configuration, and that overrides one until the next registration.
        """
        if configured:
            if not self.draining or self.draining_until_registration:
                self.drained_by_configuration, self.draining_until_registration = True, False
        elif not (self.draining and until_registration):
            self.drained_by_configuration, self.draining_until_registration = False, until_registration
        self.draining = True

    def drain_ended(self) -> None:
        self.draining = self.draining_until_registration = self.drained_by_configuration = False

    def slots_configured(self, slots: int | None) -> None:
        self.own_slots = slots

    def left(self) -> None:
        """It has left the fleet."""
        self.removed = True

    def report_received(self, metrics: AgentMetrics, now: float) -> None:
        before = self.metrics.max_loaded_models if self.metrics is not None else None
        news = self.memory.reported([gpu.memory_total for gpu in metrics.gpus or ()])
        if news or metrics.max_loaded_models != before:
            self.epoch += 1
        self.metrics = metrics
        self.metrics_at = now
        self.reported_active = metrics.active_requests
        self.base_rank = round(metrics.cpu_usage * RANK_SCALE) + round(metrics.memory_usage * RANK_SCALE)
        self.hot = metrics.cpu_usage > HOT_CPU
        self.fresh = True

    def models_listed(self, models: dict[str, ModelEntry], names: list[str]) -> None:
        """Its models, by canonical name, and their names as it spells them."""
        self.models, self.model_names = models, names
        self.unlisted.update(models, self.listed)

    def reached(self) -> None:
        """Something got through to it."""
        self.reachable, self.unreached, self.silent_since = True, "", None

    def speed_measured(self, model: str, tokens_per_second: float) -> None:
        """An answer of the model was decoded at that rate."""
        self.stats.learn_speed(model, tokens_per_second)

    def recalled(self, slots: Mapping[str, int], speeds: Mapping[str, float], now: float) -> None:
        """What was known of it when the balancer ended: slots and tokens per second, by model."""
        for model, proven in slots.items():
            self.learners.setdefault(model, SlotLearner.recalled(proven, now))
        self.stats.speeds = {**speeds, **self.stats.speeds}
        self.epoch += 1

    def is_another_machine(self) -> None:
        """It has other GPUs: what was learned of it does not hold any more."""
        self.rates.clear()
        self.stats.speeds.clear()
        self.memory.forget_loads()
        self.epoch += 1

    def model_replaced(self, model: str) -> None:
        """It has another model of that name now."""
        self.rates.pop(model, None)
        self.kept_prompts.forget(model)
        self.stats.speeds.pop(model, None)
        self.epoch += 1

    def heard(self, now: float) -> None:
        """A byte of an answer of its came."""
        self.heard_at = now

    def memory_unknown(self) -> None:
        """Forget its loaded models: by the time it is back they may have changed."""
        for loaded_model in self.loaded_models.values():
            loaded_model.gone = True
        self.loaded_models = {}
        self.unlisted.proven.clear()
        self.memory_known = False
        self.loaded_at = float("-inf")

    def may_have(self, model: str | None) -> bool:
        """Whether it has the model (a canonical name), or its models are not known yet."""
        return model is None or self.models is None or model in self.models

    def slots_for(self, model: str) -> int:
        """How many requests of the model it may run at once."""
        if self.fixed_slots:
            return self.fixed_slots
        learner = self.learners.get(model)
        return learner.limit if learner is not None else self.first_limit()

    def first_limit(self) -> int:
        """How many requests of a model that it has not run yet it may run at once: a server has one setting for all."""
        return max((learner.limit for learner in self.learners.values()), default=2)

    def slowness(self, model: str) -> float:
        """The factor by which the requests that run there now slow down a request of the model."""
        running = self.running
        at_once = max(1, running.get(model, 1))
        return (1 + SLOWDOWN * (at_once - 1)) * max(1, len(running))

    def gain_of_slots(self, model: str) -> float:
        """How many times as much of the model it does with all its slots busy as with one."""
        slots = self.slots_for(model)
        return slots / (1 + SLOWDOWN * (slots - 1))

    def holds(self, model: str) -> bool:
        """Whether it has the model loaded, or is loading it."""
        return model in self.loaded_models or model in self.loading

    def fits(self) -> int:
        """How many models fit in its memory at once, as reported or observed."""
        return self.memory.fits(self._reported_fits)

    def has_room(self, model: str, now: float) -> bool:
        """Whether it may load the model (a canonical name) without evicting another."""
        return self.could_hold(self.loaded_models.keys() | self.loading.keys(), model, now)

    def could_hold(self, loaded: Set[str], model: str, now: float) -> bool:
        """Whether the model may fit in its memory beside these."""
        for other in loaded:
            self.memory.guess(other, self.file_size(other))
        return self.memory.has_room(loaded, model, self.file_size(model), self._reported_fits, now)

    def file_size(self, model: str) -> int:
        """Bytes of the model's file; 0: not known."""
        entry = self.models.get(model) if self.models is not None else None
        return 0 if entry is None else size_of(entry)

    @property
    def _reported_fits(self) -> int | None:
        return self.metrics.max_loaded_models if self.metrics is not None else None

    @property
    def active_requests(self) -> int:
        """The larger of the reported count and the balancer's own in-flight count."""
        return max(self.reported_active, self.in_flight)

    @property
    def score(self) -> float | None:
        """cpu_usage + memory_usage + active_requests * 10; None without fresh metrics."""
        if not self.fresh:
            return None
        return (self.base_rank + self.active_requests * ACTIVE_REQUEST_RANK) / RANK_SCALE

    @property
    def slots(self) -> int | None:
        """Requests it runs at once per model: as configured or reported, else as proven; None: unknown."""
        return self.fixed_slots or max((learner.proven for learner in self.learners.values()), default=None)
