"""The choice in the adaptive mode, at 8 to 10,000 agents: `pytest benches/test_adaptive.py --benchmark-only`.

The fleet is at work: each agent has two of 24 models in memory, with prompts in their caches, runs requests of them,
and has learned rates. A round is 20 choices (divide its time by that). Between two rounds 20 requests begin and 20 end
somewhere in the fleet, so that what was computed of those agents no longer holds: as it is when a request comes for
each that ends.
"""

from __future__ import annotations

import math
import random
from functools import cache

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from agent_reporter.wire import AgentMetrics, ModelEntry
from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Agent
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.observations import AnswerObservation
from tests.core.fakes import new_registry

SIZES = (8, 64, 256, 1_000, 10_000)
MODELS = [f"model-{n}:latest" for n in range(24)]
FITS, SLOTS = 2, 4
ROUNDS = 500
WARM_UP = 40_000
"""Choices before those that are measured: what is kept of a fleet that has been at work for a while is there."""

CHOICES = 20
BUSY = 0.5
"""Requests that run, for each agent."""

by_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size:,}")


class Fleet:
    def __init__(self, size: int) -> None:
        self.now = 1_000.0
        self.rng = rng = random.Random(size)
        self.registry = registry = new_registry(
            lambda: self.now, mode="adaptive", stale_after=1e9, chance=rng.random, slots=SLOTS
        )
        self.leases: list[Lease] = []
        self.agents: list[Agent] = []
        self.rates: dict[Agent, float] = {}
        """Tokens that they write per second, on average."""
        everything = [ModelEntry(name=model) for model in MODELS]
        for number in range(size):
            agent, _ = registry.register(f"agent-{number}", Address(f"10.{number >> 8}.{number & 255}.1", 11434))
            self.agents.append(agent)
            warm = rng.sample(MODELS, FITS)
            metrics = AgentMetrics.model_validate(
                {
                    "cpu_usage": 50,
                    "memory_usage": 50,
                    "active_requests": 0,
                    "timestamp": "2026-01-01T00:00:00Z",
                    "models": everything,
                    "loaded_models": [ModelEntry(name=model) for model in warm],
                    "num_parallel": SLOTS,
                    "max_loaded_models": FITS,
                    "ollama_ok": True,
                }
            )
            registry.update_metrics(agent.id, metrics)
            self.rates[agent] = rng.uniform(10, 100)
            for model in warm:
                self.end(self.begin(agent, model))
            if rng.random() < BUSY:
                self.leases.append(self.begin(agent, rng.choice(warm)))

    def begin(self, agent: Agent, model: str) -> Lease:
        lease = self.registry.limiter.take(agent, model, self.demand(model))
        lease.began()
        return lease

    def end(self, lease: Lease) -> None:
        """With a whole answer; some are three times as long as others, as are those of people's chats."""
        tokens = round(self.rng.lognormvariate(math.log(200), 0.6))
        rate = self.rates[lease.agent] * self.rng.uniform(0.9, 1.1)
        self.registry.limiter.answered(lease, AnswerObservation(300, 4 / rate, tokens, tokens / rate, 0.02))
        lease.release()

    def demand(self, model: str) -> Demand:
        number = self.rng.randrange(1_000_000).to_bytes(4)
        return Demand(model, "", 400, ((number, 300),), ((number, 400),))

    def others(self) -> Demand:
        """Elsewhere a request ends and another one begins; and the next one comes."""
        self.now += 0.01
        at, agent = self.rng.randrange(len(self.leases)), self.rng.choice(self.agents)
        self.end(self.leases[at])
        self.leases[at] = self.begin(agent, self.rng.choice(list(agent.loaded_models)))
        return self.demand(self.rng.choice(MODELS))


@cache
def fleet(size: int) -> Fleet:
    return Fleet(size)


@by_size
def test_choose(benchmark: BenchmarkFixture, size: int) -> None:
    at_work = fleet(size)
    registry = at_work.registry
    for _ in range(WARM_UP):
        registry.selection.choose(at_work.others())
    benchmark.group = f"adaptive: {CHOICES} choices"

    def choose(demands: list[Demand]) -> None:
        for demand in demands:
            registry.selection.choose(demand)

    def setup() -> tuple[tuple[list[Demand]], dict[str, object]]:
        return ([at_work.others() for _ in range(CHOICES)],), {}

    benchmark.pedantic(choose, setup=setup, rounds=ROUNDS)  # type: ignore[no-untyped-call]
    choice = registry.selection.choose(at_work.demand(MODELS[0]))
    assert choice.options
    assert [option.cost for option in choice.options] == sorted(option.cost for option in choice.options)
