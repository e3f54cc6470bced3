"""Counts what became of requests, for monitoring. Pure; the sets of labels are bounded whatever clients send."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

TIMES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Bounds of the buckets for times, seconds."""

RATES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0)
"""Bounds of the buckets for tokens per second."""

MOST_MODELS = 200
"""Models that are told apart."""

MOST_PAIRS = 5_000
"""Agents with models that are told apart."""

OTHER = "other"


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


class Ended(NamedTuple):
    """A request that is over. Seconds."""

    agent: str
    """Empty: none had it, or several."""
    model: str
    """Canonical; empty: it concerned none."""
    route: str
    outcome: str
    """`succeeded`, `failed`, `cancelled`, or `refused` by the balancer itself."""
    seconds: float
    waited: float | None = None
    """In the line; None: not at all."""
    first_token: float | None = None
    """Of a streamed answer: until it began."""
    tokens_per_second: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    cancelled_by: str = ""
    failures: tuple[tuple[str, str], ...] = ()
    """Agents that were tried in vain, and what kind of failure it was."""


@dataclass(eq=False)
class Tally:
    """All that ended since the start."""

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
    own_seconds: float = 0.0
    """What the balancer itself has spent on requests."""
    _pairs: set[tuple[str, str]] = field(default_factory=set)
    _models: set[str] = field(default_factory=set)

    def add(self, ended: Ended) -> None:
        agent, model = ended.agent, self._model(ended.agent, ended.model)
        self.requests[agent, model, ended.route, ended.outcome] += 1
        if ended.prompt_tokens:
            self.prompt_tokens[agent, model] += ended.prompt_tokens
        if ended.output_tokens:
            self.output_tokens[agent, model] += ended.output_tokens
        for failure in ended.failures:
            self.failures[failure] += 1
        if ended.cancelled_by:
            self.cancels[ended.cancelled_by] += 1
        if ended.waited is not None:
            self.waits.observe(ended.waited)
        if ended.outcome == "succeeded":
            _observe(self.durations, model, TIMES, ended.seconds)
        if ended.first_token is not None:
            _observe(self.first_tokens, model, TIMES, ended.first_token)
        if ended.tokens_per_second is not None:
            _observe(self.rates, model, RATES, ended.tokens_per_second)

    def _model(self, agent: str, model: str) -> str:
        """The model's own name, as long as there are not too many."""
        if (agent, model) in self._pairs:
            return model
        if len(self._pairs) >= MOST_PAIRS or (model not in self._models and len(self._models) >= MOST_MODELS):
            return OTHER
        self._pairs.add((agent, model))
        self._models.add(model)
        return model

    def forget_others(self, agents: Container[str]) -> None:
        """Let go of the series of agents that are no more."""
        for counter in (self.requests, self.prompt_tokens, self.output_tokens, self.failures):
            for key in [key for key in counter if key[0] and key[0] not in agents]:
                del counter[key]
        self._pairs = {pair for pair in self._pairs if not pair[0] or pair[0] in agents}


def _observe(by_model: dict[str, Histogram], model: str, bounds: Sequence[float], value: float) -> None:
    histogram = by_model.get(model)
    if histogram is None:
        histogram = by_model[model] = Histogram(bounds)
    histogram.observe(value)
