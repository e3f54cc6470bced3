"""The merged lists of models, at 10 to 10,000 agents: `pytest benches/test_merging.py --benchmark-only`.

Each agent has 10 models of the fleet's 108, and one of them loaded. "After a report" includes neither the report's
arrival nor its parsing: what is measured is the first question after it.
"""

from __future__ import annotations

import json
import random
from functools import cache
from itertools import cycle

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from agent_reporter.wire import AgentMetrics, ModelEntry
from ollama_balancer.core.address import Address
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.gateway.merging import MergedFleet
from tests.core.fakes import new_registry

SIZES = (10, 100, 1_000, 10_000)
EVERYWHERE = [f"everywhere-{n}:7b" for n in range(8)]
SOMEWHERE = [f"somewhere-{n}:7b" for n in range(100)]
TIMESTAMP = "2026-01-01T00:00:00Z"

by_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size:,}")


def entry(name: str, version: int = 0) -> ModelEntry:
    return ModelEntry.model_validate(
        {
            "name": name,
            "model": name,
            "modified_at": f"2026-01-01T00:00:{version:02}Z",
            "size": 4_000_000_000,
            "digest": f"{version:064}",
            "details": {"format": "gguf", "family": "llama", "parameter_size": "7B", "quantization_level": "Q4_K_M"},
        }
    )


def report(models: list[ModelEntry]) -> AgentMetrics:
    return AgentMetrics.model_validate(
        {
            "cpu_usage": 10,
            "memory_usage": 10,
            "active_requests": 0,
            "timestamp": TIMESTAMP,
            "models": models,
            "loaded_models": models[:1],
            "ollama_version": "0.33.0",
        }
    )


def models_of(number: int, version: int = 0) -> list[ModelEntry]:
    rng = random.Random(number)
    return [entry(EVERYWHERE[0], version), *(entry(name) for name in [*EVERYWHERE[1:], *rng.sample(SOMEWHERE, 2)])]


@cache
def fleet(size: int) -> tuple[AgentRegistry, MergedFleet]:
    registry = new_registry(stale_after=86_400)
    for number in range(size):
        agent, _ = registry.register(f"agent-{number}", Address(f"10.0.{number >> 8}.{number & 255}", 11434))
        registry.update_metrics(agent.id, report(models_of(number)))
    return registry, MergedFleet(registry)


@by_size
def test_tags(benchmark: BenchmarkFixture, size: int) -> None:
    _, merged = fleet(size)
    assert EVERYWHERE[0] in {model["name"] for model in json.loads(merged.tags())["models"]}
    benchmark.group = "tags, nothing changed"
    benchmark.pedantic(merged.tags, rounds=200, iterations=1_000, warmup_rounds=3)  # type: ignore[no-untyped-call]


@by_size
def test_tags_after_a_pull(benchmark: BenchmarkFixture, size: int) -> None:
    """One agent has another version of a model that all have."""
    registry, merged = fleet(size)
    agent = registry.get("agent-0")
    assert agent is not None
    agent_id = agent.id
    reports = cycle([report(models_of(0, version)) for version in (1, 2)])

    def pull() -> None:
        registry.update_metrics(agent_id, next(reports))

    pull()
    before = merged.tags()
    pull()
    assert merged.tags() != before
    benchmark.group = "tags after a pull of a model that all have"
    benchmark.pedantic(merged.tags, setup=pull, rounds=200, warmup_rounds=3)  # type: ignore[no-untyped-call]


@by_size
def test_running(benchmark: BenchmarkFixture, size: int) -> None:
    _, merged = fleet(size)
    assert {model["name"] for model in json.loads(merged.running())["models"]} == {EVERYWHERE[0]}
    benchmark.group = "ps, nothing changed"
    benchmark.pedantic(merged.running, rounds=200, iterations=1_000, warmup_rounds=3)  # type: ignore[no-untyped-call]


@by_size
def test_running_after_a_report(benchmark: BenchmarkFixture, size: int) -> None:
    registry, merged = fleet(size)
    agent = registry.get("agent-0")
    assert agent is not None
    agent_id = agent.id
    reports = cycle([report(models_of(0)), report(models_of(0)[1:])])

    def load() -> None:
        registry.update_metrics(agent_id, next(reports))

    load()
    before = merged.running()
    load()
    assert merged.running() != before
    benchmark.group = "ps after a report of another loaded model"
    benchmark.pedantic(merged.running, setup=load, rounds=200, warmup_rounds=3)  # type: ignore[no-untyped-call]
