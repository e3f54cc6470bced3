"""The choice of an agent and the update from a report, at 10 to 100,000 agents: `pytest benches --benchmark-only`.

`naive` is `min()` over the online agents by score, with nothing indexed, in the same run. Each bench checks that the
agent chosen has the lowest score of all that have the model.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import cycle

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from agent_reporter.wire import AgentMetrics, ModelEntry
from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Agent
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.registry import AgentRegistry
from tests.core.fakes import new_registry

SIZES = (10, 100, 1_000, 10_000, 100_000)
OPEN_LEASES = 500

EVERYWHERE = "everywhere:latest"
HALVES = ("even:8b", "odd:8b")
"""Each agent has one of the two, so that each of them is held by half of the agents."""

MODELS_PER_AGENT = 10
DISTINCT_REPORTS = 200
TIMESTAMP = "2026-01-01T00:00:00Z"

ROUND_SECONDS = 0.002
"""What a round should take at least, so that the timer's resolution and the loop around the call do not show."""

by_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size:,}")


class Host:
    """What `min()` needs to know of an agent."""

    __slots__ = ("active_requests", "cpu_usage", "memory_usage", "models", "online")

    def __init__(self, cpu_usage: float, memory_usage: float, models: frozenset[str]) -> None:
        self.cpu_usage = cpu_usage
        self.memory_usage = memory_usage
        self.active_requests = 0
        self.models = models
        self.online = True


def score(host: Host) -> float:
    return host.cpu_usage + host.memory_usage + host.active_requests * 10


def model_names(number: int) -> list[str]:
    others = [f"model-{n}:7b" for n in range(MODELS_PER_AGENT - 2)]
    return [EVERYWHERE, HALVES[number % 2], *others]


def entry(name: str) -> ModelEntry:
    return ModelEntry.model_validate({"name": name, "model": name, "size": 4_000_000_000, "digest": "0" * 64})


def report(rng: random.Random, models: list[ModelEntry], active_requests: int = 0) -> AgentMetrics:
    """Figures as psutil gives them: percentages with one decimal."""
    return AgentMetrics.model_validate(
        {
            "cpu_usage": round(rng.uniform(0, 95), 1),
            "memory_usage": round(rng.uniform(20, 90), 1),
            "active_requests": active_requests,
            "timestamp": TIMESTAMP,
            "models": models,
            "loaded_models": models[:1],
            "ollama_ok": True,
        }
    )


def new_fleet(size: int) -> AgentRegistry:
    rng = random.Random(size)
    registry = new_registry(stale_after=86_400)
    models = [[entry(name) for name in model_names(parity)] for parity in (0, 1)]
    for number in range(size):
        address = Address(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 11434)
        agent, _ = registry.register(f"agent-{number}", address)
        registry.update_metrics(agent.id, report(rng, models[number % 2]))
    return registry


@cache
def fleet(size: int) -> AgentRegistry:
    """A fleet of which only any agent is asked for: each agent is in one pool."""
    return new_fleet(size)


@cache
def fleet_with_models(size: int) -> AgentRegistry:
    """A fleet of which any agent and the half-held models have been asked for: each agent is in two pools."""
    registry = new_fleet(size)
    for model in (None, *HALVES):
        registry.select_agent_by_metrics(model)
    return registry


@cache
def hosts(size: int) -> list[Host]:
    return [
        Host(agent.metrics.cpu_usage, agent.metrics.memory_usage, frozenset(agent.model_names))
        for agent in fleet(size)
        if agent.metrics
    ]


def measure[T](benchmark: BenchmarkFixture, group: str, call: Callable[[], T], calls: int, rounds: int = 200) -> None:
    """`calls` is how many of them a round has."""
    benchmark.group = group
    benchmark.pedantic(call, rounds=rounds, iterations=calls, warmup_rounds=3)  # type: ignore[no-untyped-call]


def calls_a_round(seconds_a_call: float) -> int:
    return max(1, round(ROUND_SECONDS / seconds_a_call))


def naive_rounds(size: int) -> int:
    return 200 if size <= 1_000 else 20


def is_lowest(registry: AgentRegistry, agent: Agent | None, model: str | None = None) -> bool:
    scores = [a.score for a in registry if a.score is not None and (model is None or model in a.model_names)]
    return agent is not None and (model is None or model in agent.model_names) and agent.score == min(scores)


@by_size
def test_select(benchmark: BenchmarkFixture, size: int) -> None:
    registry = fleet(size)
    assert is_lowest(registry, registry.select_agent_by_metrics())
    measure(benchmark, "select", registry.select_agent_by_metrics, calls_a_round(0.5e-6))
    assert is_lowest(registry, registry.select_agent_by_metrics())


@by_size
def test_select_naive(benchmark: BenchmarkFixture, size: int) -> None:
    all_hosts = hosts(size)

    def select() -> Host:
        return min((host for host in all_hosts if host.online), key=score)

    chosen = fleet(size).select_agent_by_metrics()
    assert chosen is not None
    assert chosen.score == round(score(select()), 1)
    measure(benchmark, "select", select, calls_a_round(size * 0.1e-6), naive_rounds(size))


@by_size
def test_select_take_release(benchmark: BenchmarkFixture, size: int) -> None:
    registry = fleet(size)
    select, take = registry.select_agent_by_metrics, registry.limiter.take

    def request() -> None:
        agent = select()
        assert agent is not None
        take(agent).release()

    measure(benchmark, "select + take + release", request, calls_a_round(2e-6))
    assert registry.in_flight == 0
    assert is_lowest(registry, select())


@by_size
def test_select_take_release_with_slots(benchmark: BenchmarkFixture, size: int) -> None:
    """A request that a model is run for: it takes one of four slots, its answer begins, it is served."""
    registry = fleet_with_models(size)
    registry.slots = 4
    model = HALVES[0]
    select, take = registry.select_agent_by_metrics, registry.limiter.take

    def request() -> None:
        agent = select(model)
        assert agent is not None
        lease = take(agent, model)
        lease.began()
        registry.ejection.succeeded(lease)
        lease.release()

    measure(benchmark, "a request in a slot", request, calls_a_round(6e-6))
    registry.slots = 0
    assert registry.in_flight == 0


@by_size
def test_select_take_release_naive(benchmark: BenchmarkFixture, size: int) -> None:
    all_hosts = hosts(size)

    def request() -> Host:
        host = min((host for host in all_hosts if host.online), key=score)
        host.active_requests += 1
        host.active_requests -= 1
        return host

    assert score(request()) == min(map(score, all_hosts))
    measure(benchmark, "select + take + release", request, calls_a_round(size * 0.1e-6), naive_rounds(size))


@by_size
def test_half_held_model(benchmark: BenchmarkFixture, size: int) -> None:
    registry = fleet_with_models(size)
    select, take = registry.select_agent_by_metrics, registry.limiter.take
    model = HALVES[0]

    def request() -> None:
        agent = select(model)
        assert agent is not None
        take(agent).release()

    measure(benchmark, "select + take + release, model held by half", request, calls_a_round(3e-6))
    assert registry.in_flight == 0
    assert is_lowest(registry, select(model), model)


@by_size
def test_half_held_model_naive(benchmark: BenchmarkFixture, size: int) -> None:
    all_hosts = hosts(size)
    model = HALVES[0]

    def request() -> Host:
        host = min((host for host in all_hosts if host.online and model in host.models), key=score)
        host.active_requests += 1
        host.active_requests -= 1
        return host

    assert model in request().models
    group = "select + take + release, model held by half"
    measure(benchmark, group, request, calls_a_round(size * 0.1e-6), naive_rounds(size))


@by_size
def test_many_open_leases(benchmark: BenchmarkFixture, size: int) -> None:
    """A request begins and, of the hundreds that run, a random one ends."""
    registry = new_fleet(size)
    select, take = registry.select_agent_by_metrics, registry.limiter.take

    def begin() -> Lease:
        agent = select()
        assert agent is not None
        return take(agent)

    leases = [begin() for _ in range(OPEN_LEASES)]
    rng = random.Random(size)
    next_to_end = cycle([rng.randrange(OPEN_LEASES) for _ in range(10_000)]).__next__

    def request() -> None:
        at = next_to_end()
        leases[at].release()
        leases[at] = begin()

    measure(benchmark, f"release one of {OPEN_LEASES} open at random + select + take", request, calls_a_round(3e-6))
    assert registry.in_flight == OPEN_LEASES
    assert is_lowest(registry, select())


@by_size
def test_report(benchmark: BenchmarkFixture, size: int) -> None:
    """A validated report of a random agent, with other figures than its last and the same models."""
    registry = fleet_with_models(size)
    rng = random.Random(size)
    agents = rng.sample(list(registry), min(size, DISTINCT_REPORTS // 2))
    # Each agent comes round with at least two different reports. Few in all, because a fresh one is in the CPU's cache.
    reports = [
        (agent.id, report(rng, [entry.model_copy() for entry in (agent.models or {}).values()], rng.randrange(3)))
        for _ in range(DISTINCT_REPORTS // len(agents))
        for agent in agents
    ]
    next_report = cycle(reports).__next__

    def update() -> None:
        registry.update_metrics(*next_report())

    measure(benchmark, "a report", update, calls_a_round(5e-6))
    for key, metrics in reports:
        assert registry.update_metrics(key, metrics)
    last = dict(reports)
    assert all(agent.metrics is last[agent.id] for agent in agents)
    assert is_lowest(registry, registry.select_agent_by_metrics())
    assert is_lowest(registry, registry.select_agent_by_metrics(HALVES[0]), HALVES[0])
