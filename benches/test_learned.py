"""The file of what was learned, of 1,000 agents with 50 models each: `pytest benches/test_learned.py --benchmark-only`.

With `--benchmark-timer=time.process_time` the time is that of the CPU. Reading and writing are done in a thread, agent
by agent; what the event loop does is a turn of four agents at a time.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ollama_balancer.core.knowledge import AgentRecord
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.storage.learned import FILE_NAME, LearnedFile
from ollama_balancer.storage.persistence import AT_ONCE
from tests.storage.test_learned import NOW, fleet


@pytest.fixture(scope="module")
def records() -> list[AgentRecord]:
    return fleet(1000, 50)


def test_write(benchmark: BenchmarkFixture, records: list[AgentRecord], tmp_path: Path) -> None:
    file = LearnedFile(tmp_path / FILE_NAME)
    states = cycle((records, records[:-1]))
    assert benchmark.pedantic(lambda: file.save(next(states)), rounds=6)  # type: ignore[no-untyped-call]
    benchmark.extra_info["MB"] = file.path.stat().st_size / 1e6


def test_read(benchmark: BenchmarkFixture, records: list[AgentRecord], tmp_path: Path) -> None:
    file = LearnedFile(tmp_path / FILE_NAME)
    file.save(records)
    assert len(benchmark.pedantic(file.read, rounds=6)) == 1000  # type: ignore[no-untyped-call]


def test_a_turn_of_taking_in(benchmark: BenchmarkFixture, records: list[AgentRecord]) -> None:
    def setup() -> tuple[tuple[AgentRegistry], dict[str, object]]:
        return (AgentRegistry(lambda: 0.0),), {}

    def take_in(registry: AgentRegistry) -> None:
        for record in records[:AT_ONCE]:
            registry.knowledge.restore(record, NOW)

    benchmark.pedantic(take_in, setup=setup, rounds=100)  # type: ignore[no-untyped-call]


def test_a_turn_of_giving_out(benchmark: BenchmarkFixture, records: list[AgentRecord]) -> None:
    registry = AgentRegistry(lambda: 0.0)
    for record in records:
        registry.knowledge.restore(record, NOW)
    agents = registry.knowledge.agents()[:AT_ONCE]
    benchmark.pedantic(lambda: [registry.knowledge.record(agent, NOW) for agent in agents], rounds=100)  # type: ignore[no-untyped-call]
