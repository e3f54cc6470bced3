"""What the tests of the core share: a clock that is set by hand, and reports."""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from typing import Any

from agent_reporter.wire import AgentMetrics, ModelEntry
from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Agent
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.ollama.names import canonical_name

new_registry = functools.partial(AgentRegistry, canonical_name=canonical_name)
"""Registries that tell models apart as the balancer has them do."""

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Clock:
    """Monotonic seconds that pass only when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def report(cpu: float = 10.0, memory: float = 20.0, active: int = 0, *, at: float = 0.0, **more: Any) -> AgentMetrics:
    """A report whose host's own clock says `at` seconds past noon."""
    return AgentMetrics(
        cpu_usage=cpu, memory_usage=memory, active_requests=active, timestamp=NOON + timedelta(seconds=at), **more
    )


def entries(*names: str) -> list[ModelEntry]:
    return [ModelEntry(name=name) for name in names]


def address(number: int) -> Address:
    return Address(f"10.0.0.{number}", 11434)


def fleet(registry: AgentRegistry, *names: str) -> list[Agent]:
    """Agents of those names, which answer to probes and have the model `m`."""
    agents = []
    for number, name in enumerate(names, 1):
        agent, _ = registry.register(name, address(number))
        registry.inventory.update_models(agent, entries("m"))
        registry.liveness.reached(agent)
        agents.append(agent)
    return agents
