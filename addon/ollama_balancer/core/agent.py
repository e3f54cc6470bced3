"""An agent: one Ollama host as the balancer sees it."""

from __future__ import annotations

import uuid
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .address import Address
from .concurrency import SlotLearner
from .decision import Decision
from .health import Health, Phase
from .scoreboard import Scoreboard

if TYPE_CHECKING:
    from agent_reporter.wire import AgentMetrics, ModelEntry

HOT_CPU = 80.0
"""Percent of CPU above which a host is busy in itself: the rule of the mode `metrics`, as the README has it."""

RANK_SCALE = 1000
"""Ranks are scores in thousandths, so that they are exact integers and equal scores are equal ranks."""

ACTIVE_REQUEST_SCORE = 10
"""What one active request adds to the score: the formula of the mode `metrics`, as the README has it."""

ACTIVE_REQUEST_RANK = ACTIVE_REQUEST_SCORE * RANK_SCALE

SLOWDOWN = 0.4
"""By how much each further request of the same model slows those that run beside it.

Source: the sample results in the README of llama.cpp's batched-bench (LLaMA 7B, F16): 2 at once take 1.63 times as long
each, 4 take 2.23, 8 take 2.39, which is 0.63, 0.41 and 0.20. `--tune agent.SLOWDOWN`: flat from 0.1 to 1 where that of
the hosts is 0.4."""

NOT_HEARD_OF = "not heard of yet"

MAX_SPEEDS = 1000
"""Models whose speed is kept for one agent."""


class Source(StrEnum):
    STATIC = "static"
    REGISTERED = "registered"
    DEMO = "demo"
    LOCAL = "local"


class Status(StrEnum):
    ONLINE = "online"
    OFFLINE = "offline"
    UNREACHABLE = "unreachable"
    """It reports, and the balancer does not get through to it."""
    UNAUTHORIZED = "unauthorized"
    """It, or a proxy in front of it, does not let the balancer in."""
    EJECTED = "ejected"
    DRAINING = "draining"


class Outcome(StrEnum):
    """How a request ended on an agent."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    """With a 4xx: the request itself is at fault."""


def agent_id(name: str) -> str:
    """The id of the agent of that name: the same in every run."""
    return uuid.uuid5(uuid.UUID("6f6c6c61-6d61-5062-616c-616e63657221"), name).hex[:12]


class Rates(NamedTuple):
    """How fast an agent serves a model: tokens per second."""

    decode: float
    prefill: float
    observations: int
    """Answers on which `decode` rests."""


@dataclass(slots=True)
class Warm:
    """A model in memory."""

    runner: str | None = None
    """The options that it was loaded with, in one spelling; None: not known."""
    proven_at: float = float("-inf")
    """When an answer of it began there."""
    reads: int = 0
    """Prompts that it has read of which it knew no beginning."""
    gone: bool = False
    """Whether it is no longer in memory."""


@dataclass
class Statistics:
    """What became of the requests that an agent was sent. One that two agents were tried for counts with both."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    rejected: int = 0
    ejections: int = 0
    response_seconds: float = 0.0
    """Over the succeeded requests, from the choice of the agent to the last byte."""
    speeds: dict[str, float] = field(default_factory=dict)
    """Tokens per second by model: a moving average with a weight of 0.2 for the newest."""

    @property
    def ended(self) -> int:
        return self.succeeded + self.failed + self.cancelled + self.rejected

    def learn_speed(self, model: str, tokens_per_second: float) -> None:
        old = self.speeds.get(model)
        if old is None and len(self.speeds) >= MAX_SPEEDS:
            return
        self.speeds[model] = tokens_per_second if old is None else old + 0.2 * (tokens_per_second - old)


class Ranking(Protocol):
    """What ranks agents by their metrics."""

    def changed(self, agent: Agent) -> None:
        """The agent's metrics are others, or no longer fresh."""


class Agent:
    """One Ollama host. Only the registry changes it; equality is identity."""

    __slots__ = (
        "address",
        "alias_of",
        "base_rank",
        "boards",
        "clock_lead",
        "closed",
        "decision",
        "draining",
        "draining_until_registration",
        "epoch",
        "fixed_slots",
        "fresh",
        "full",
        "health",
        "heard_at",
        "host_key",
        "hot",
        "id",
        "in_flight",
        "instance",
        "learners",
        "listed",
        "loaded",
        "loaded_at",
        "loaded_names",
        "loaders",
        "loading",
        "memory_known",
        "metrics",
        "metrics_at",
        "model_names",
        "models",
        "most_loaded",
        "name",
        "number",
        "offline_reason",
        "placed",
        "pools",
        "probed",
        "rates",
        "reachable",
        "refusal",
        "removed",
        "reported_active",
        "reported_alive",
        "running",
        "said",
        "silent_since",
        "source",
        "stats",
        "trial",
        "unreached",
        "version",
        "warm",
        "was_online",
    )

    def __init__(self, name: str, address: Address, source: Source, number: int) -> None:
        self.id = agent_id(name)
        self.name = name
        self.address = address
        self.source = source
        self.host_key: Hashable | None = None
        """Where its host listens, as far as is known: equal for two agents that are one host."""
        self.alias_of: Agent | None = None
        """The agent that stands for the host that both are: that one gets its requests."""
        self.instance: str | None = None
        """Of the reporter that registered it last."""
        self.number = number
        """Its place in the order of registration."""
        self.models: dict[str, ModelEntry] | None = None
        """The models it has, by canonical name; None: not known yet."""
        self.model_names: list[str] = []
        self.loaded: list[ModelEntry] = []
        self.loaded_at = float("-inf")
        """As of when that is known, on the registry's clock."""
        self.loaded_names: list[str] = []
        self.listed: dict[str, None] = {}
        """Their canonical names."""
        self.version: str | None = None
        self.warm: dict[str, Warm] = {}
        """Models (canonical names) that it has in memory, as far as is known."""
        self.loading: dict[str, float] = {}
        """Models that it loads, and since when."""
        self.memory_known = False
        """Whether it has told, since it came, what it has in memory."""
        self.clock_lead = float("inf")
        """By how much the registry's clock is ahead of its own, in seconds, as its quickest reports have shown."""
        self.rates: dict[str, Rates] = {}
        """By model, those that the estimates had after its last answer: a copy, so that a look costs little."""
        self.most_loaded = 0
        """Models that it was seen to have in memory at once."""
        self.placed: set[str] = set()
        """Models for which it counts in the fleet's placement."""
        self.epoch = 0
        """Grows when something changes that a forecast rests on."""
        self.in_flight = 0
        self.running: dict[str, int] = {}
        """Requests in flight by model, of those that take a slot."""
        self.fixed_slots = 0
        """Requests it runs at once per model, where that is set or reported; 0: it is learned."""
        self.learners: dict[str, SlotLearner] = {}
        self.full: set[str] = set()
        """Models of which it runs as many as it can."""
        self.loaders: dict[str, int] = {}
        """Requests in flight, by model, that have it load their model."""
        self.heard_at = float("-inf")
        """When a byte of any answer of its came, or one ended, on the registry's clock."""
        self.health = Health()
        self.trial: object = None
        """The lease of the request that tries it while it is ejected; None: there is none."""
        self.closed = False
        """Whether its health forbids new requests at this moment."""
        self.decision: Decision | None = None
        """Why the last request that was weighed went there."""
        self.refusal: str | None = None
        """Why it is not used for a while: it does not let the balancer in."""
        self.was_online = False
        self.draining = False
        self.draining_until_registration = False
        self.removed = False
        self.offline_reason = NOT_HEARD_OF
        self.reported_alive = False
        """Whether a report that still counts says that its Ollama answers."""
        self.probed = False
        """Whether it has answered a probe of late."""
        self.reachable = True
        """Whether nothing has failed to reach its address since something got through."""
        self.unreached = ""
        """Why the last attempt to reach it failed; empty once something gets through."""
        self.silent_since: float | None = None
        """When the first probe since something got through was left without an answer."""
        self.said: Status | None = None
        """Whether it is online, offline or unreachable, as the log has it."""
        self.metrics: AgentMetrics | None = None
        self.metrics_at = 0.0
        self.fresh = False
        self.hot = False
        self.base_rank = 0
        self.reported_active = 0
        self.stats = Statistics()
        self.pools: list[Ranking] = []
        self.boards: list[Scoreboard[Agent]] = []
        """The boards of `pools`, in the same order: what a request's begin and end have to tell."""

    def __repr__(self) -> str:
        return f"Agent({self.name}, {self.status}, {self.in_flight} in flight)"

    @property
    def online(self) -> bool:
        """A report or a probe of late says that its Ollama answers, and the balancer gets through to it."""
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
        """Online and to be used, though perhaps not at this moment: it may be ejected, or have all its slots taken."""
        return self.online and self.alias_of is None and not (self.draining or self.removed or self.refusal)

    @property
    def eligible(self) -> bool:
        """May get new requests now, of a model it has a slot for."""
        if not self.probed and not (self.reported_alive and self.reachable):
            return False
        return not (self.draining or self.removed or self.closed or self.refusal or self.alias_of is not None)

    @property
    def reason(self) -> str | None:
        """Why it is not simply online."""
        if self.alias_of is not None and self.status is Status.ONLINE:
            other = self.alias_of
            return f"the same host as {other.name} ({other.address}), which gets its requests: remove one of the two"
        match self.status:
            case Status.OFFLINE:
                return self.offline_reason
            case Status.UNAUTHORIZED:
                return self.refusal
            case Status.UNREACHABLE:
                return self.unreached or f"it reports, and has not been reached at {self.address} yet"
            case Status.EJECTED:
                return self.health.reason
            case Status.ONLINE if self.health.phase is Phase.RETURNING:
                return "returning: for a while it gets no more than it runs at once"
            case _:
                return None

    def may_have(self, model: str | None) -> bool:
        """Whether it has the model (a canonical name), or its models are not known yet."""
        return model is None or self.models is None or model in self.models

    def slots_for(self, model: str) -> int:
        """How many requests of the model it may run at once."""
        if self.fixed_slots:
            return self.fixed_slots
        learner = self.learners.get(model)
        return learner.limit if learner is not None else 2

    def slowness(self, model: str) -> float:
        """By which factor a request of the model takes longer there than alone, with all that runs there now."""
        running = self.running
        at_once = max(1, running.get(model, 1))
        return (1 + SLOWDOWN * (at_once - 1)) * max(1, len(running))

    def holds(self, model: str) -> bool:
        """Whether it has the model in memory, or is loading it."""
        return model in self.warm or model in self.loading

    def fits(self) -> int:
        """How many models it may have in memory at once, as it reports or as was seen."""
        reported = self.metrics.max_loaded_models if self.metrics is not None else None
        return reported or max(1, self.most_loaded)

    @property
    def active_requests(self) -> int:
        """The larger of what the host reports and what the balancer has running there."""
        return max(self.reported_active, self.in_flight)

    @property
    def score(self) -> float | None:
        """cpu_usage + memory_usage + active_requests * 10; None without fresh metrics."""
        if not self.fresh:
            return None
        return (self.base_rank + self.active_requests * ACTIVE_REQUEST_RANK) / RANK_SCALE

    @property
    def slots(self) -> int | None:
        """Requests it runs at once per model: as set or reported, else what is proven; None: nothing is known yet."""
        return self.fixed_slots or max((learner.proven for learner in self.learners.values()), default=None)

    def describe(self, now: float, *, whole: bool = True) -> dict[str, Any]:
        """The agent as the control API shows it; `now` is the registry's clock.

        Not `whole`: its metrics without the two lists of models, which can be most of it.
        """
        stats = self.stats
        left_out = None if whole else {"models", "loaded_models"}
        return {
            "id": self.id,
            "name": self.name,
            "url": self.address.url,
            "source": self.source,
            "status": self.status,
            "reason": self.reason,
            "alias_of": self.alias_of.name if self.alias_of is not None else None,
            "strikes": self.health.strikes,
            "models": list(self.model_names),
            "loaded_models": [m.name for m in self.loaded],
            "ollama_version": self.version,
            "in_flight": self.in_flight,
            "running": dict(self.running),
            "loading": list(self.loading),
            "decision": self.decision.describe(now) if self.decision else None,
            "slots": self.slots,
            "metrics": self.metrics.model_dump(mode="json", exclude=left_out) if self.metrics else None,
            "metrics_age": round(now - self.metrics_at, 3) if self.metrics else None,
            "stale": not self.fresh,
            "score": self.score,
            "stats": {
                "requests": stats.ended + self.in_flight,
                "succeeded": stats.succeeded,
                "failed": stats.failed,
                "cancelled": stats.cancelled,
                "rejected": stats.rejected,
                "avg_response_time": round(stats.response_seconds / stats.succeeded * 1000, 3)
                if stats.succeeded
                else None,
                "tokens_per_second": {model: round(speed, 2) for model, speed in stats.speeds.items()},
            },
        }
