"""Request metrics for monitoring. Pure; the sets of labels are bounded whatever clients send."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

TIMES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Bounds of the buckets for times, seconds."""

RATES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0)
"""Bounds of the buckets for tokens per second."""

MAX_MODELS = 200
"""Models that are told apart."""

MAX_PAIRS = 5_000
"""Agents with models that are told apart."""

OTHER = "other"

OUTCOMES = ("succeeded", "failed", "cancelled", "rejected", "refused")
"""How a request ends. `rejected`: with a 4xx, the request or its caller is at fault; `refused`: by the balancer."""

REMOVED = "(removed)"
"""In the place of the names of agents that are long gone."""

MAX_REMOVED = 100
"""Agents that are gone and still told apart. A counter that is taken away, or added to another, looks like traffic."""


class Histogram:
    """Counts by bucket, and the sum of what was counted."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, int]]:
        """Upper bounds with how many were at most that, as Prometheus has them."""
        return list(zip([*map(str, self._bounds), "+Inf"], accumulate(self._counts), strict=True))


class RequestSummary(NamedTuple):
    """What monitoring counts of a request that has ended. Seconds."""

    agent: str
    """Empty: none had it, or several."""
    model: str
    """Canonical; empty: it concerned none."""
    route: str
    outcome: str
    """One of OUTCOMES."""
    seconds: float
    waited: float | None = None
    """In the queue; None: it did not wait."""
    first_token: float | None = None
    """Of a streamed answer: until it began."""
    tokens_per_second: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    cancelled_by: str = ""
    failures: tuple[tuple[str, str], ...] = ()
    """Agents that were tried in vain, and what kind of failure it was."""
    status: int | None = None
    """Of the answer, where it is known."""


@dataclass(eq=False)
class RequestMetrics:
    """Counters over all requests since the start: the source of every view of them."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """All requests, by outcome."""
    rejections: Counter[int] = field(default_factory=Counter)
    """The rejected, by status."""
    requests: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """By agent, model, route and outcome."""
    prompt_tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    output_tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By agent and model."""
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Attempts in vain, by agent and kind."""
    cancels: Counter[str] = field(default_factory=Counter)
    durations: dict[str, Histogram] = field(default_factory=dict)
    first_tokens: dict[str, Histogram] = field(default_factory=dict)
    rates: dict[str, Histogram] = field(default_factory=dict)
    """By model."""
    waits: Histogram = field(default_factory=lambda: Histogram(TIMES))
    relayed: int = 0
    """Answers of which a part went past mitmproxy's layers."""
    processing_seconds: float = 0.0
    """What the balancer itself has spent on requests."""
    _pairs: set[tuple[str, str]] = field(default_factory=set)
    _models: set[str] = field(default_factory=set)
    _gone: dict[str, None] = field(default_factory=dict)
    """Agents that are no more and have series, the one first that has been gone for longest."""

    def add(self, summary: RequestSummary) -> None:
        agent, model = summary.agent, self._model(summary.agent, summary.model)
        self.outcomes[summary.outcome] += 1
        if summary.outcome == "rejected":
            self.rejections[summary.status or 400] += 1
        self.requests[agent, model, summary.route, summary.outcome] += 1
        if summary.prompt_tokens:
            self.prompt_tokens[agent, model] += summary.prompt_tokens
        if summary.output_tokens:
            self.output_tokens[agent, model] += summary.output_tokens
        for failure in summary.failures:
            self.failures[failure] += 1
        if summary.cancelled_by:
            self.cancels[summary.cancelled_by] += 1
        if summary.waited is not None:
            self.waits.observe(summary.waited)
        if summary.outcome == "succeeded":
            _observe(self.durations, model, TIMES, summary.seconds)
        if summary.first_token is not None:
            _observe(self.first_tokens, model, TIMES, summary.first_token)
        if summary.tokens_per_second is not None:
            _observe(self.rates, model, RATES, summary.tokens_per_second)

    def _model(self, agent: str, model: str) -> str:
        """The model's own name, as long as there are not too many."""
        if (agent, model) in self._pairs:
            return model
        if len(self._pairs) >= MAX_PAIRS or (model not in self._models and len(self._models) >= MAX_MODELS):
            return OTHER
        self._pairs.add((agent, model))
        self._models.add(model)
        return model

    def totals(self, in_flight: int) -> dict[str, int]:
        """Of all requests: how many there were, by outcome, and those that are in flight."""
        counts = {outcome: self.outcomes[outcome] for outcome in OUTCOMES}
        return {"requests": sum(counts.values()) + in_flight, **counts, "in_flight": in_flight}

    def fold_removed(self, agents: Container[str]) -> None:
        """Of the agents that are not among these, keep the last ones apart and put the others' counts together."""
        named = {key[0]: None for counter in (self.requests, self.failures) for key in counter}
        for nobody in ("", REMOVED):
            named.pop(nobody, None)
        self._gone = {agent: None for agent in self._gone | named if agent in named and agent not in agents}
        too_many = list(self._gone)[: max(0, len(self._gone) - MAX_REMOVED)]
        if not too_many:
            return
        for agent in too_many:
            del self._gone[agent]
        folded = frozenset(too_many)
        self.requests = _folded(self.requests, folded)
        self.prompt_tokens = _folded(self.prompt_tokens, folded)
        self.output_tokens = _folded(self.output_tokens, folded)
        self.failures = _folded(self.failures, folded)
        self._pairs = {(REMOVED if agent in folded else agent, model) for agent, model in self._pairs}


def _folded[K: tuple[str, ...]](counter: Counter[K], agents: Container[str]) -> Counter[K]:
    folded: Counter[Any] = Counter()
    for (agent, *rest), count in counter.items():
        folded[REMOVED if agent in agents else agent, *rest] += count
    return folded


def _observe(by_model: dict[str, Histogram], model: str, bounds: Sequence[float], value: float) -> None:
    histogram = by_model.get(model)
    if histogram is None:
        histogram = by_model[model] = Histogram(bounds)
    histogram.observe(value)
