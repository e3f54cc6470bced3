"""Which models to load in place of which others: `pytest benches/test_rebalancing.py --benchmark-only`.

The largest fleet for which that is planned, with all the models that are looked at, and more asked for than the models
in memory can serve. It is done on the event loop, once in five seconds at most, while requests wait.
"""

from __future__ import annotations

import random

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ollama_balancer.core.rebalancing import AGENTS, MODELS
from ollama_balancer.core.scoring.placement_plan import plan
from tests.core.fakes import Clock, fleet, new_registry


@pytest.mark.parametrize("fits", [1, 3])
def test_plan(benchmark: BenchmarkFixture, fits: int) -> None:
    rng = random.Random(1)
    agents = fleet(new_registry(Clock()), *(f"h{number}" for number in range(AGENTS)))
    models = [f"m{number}" for number in range(MODELS)]
    places = {agent: set(rng.sample(models, fits)) for agent in agents}
    speed = {agent: rng.uniform(1, 8) for agent in agents}
    capacity = {agent: dict.fromkeys(models, speed[agent]) for agent in agents}
    weights = {model: 1 / (number + 1) for number, model in enumerate(models)}
    scale = 0.6 * sum(speed.values()) / sum(weights.values())
    demand = {model: scale * weight for model, weight in weights.items()}
    benchmark.group = f"plan: {AGENTS} agents, {MODELS} models"
    found = benchmark(plan, places, demand, capacity, lambda agent, models, model: len(models) < fits)
    assert found.unserved > 0.1
