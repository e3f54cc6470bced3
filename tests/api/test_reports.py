"""A report that is taken in past the application, and what is left to the application."""

from __future__ import annotations

import json

import pytest

from ollama_balancer.api.reports import take_report
from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Agent
from ollama_balancer.core.registry import AgentRegistry
from tests.core.fakes import new_registry
from tests.e2e.harness import report

FUTURE = json.dumps({**report(), "timestamp": "9999-12-31T23:59:59Z"}).encode()


@pytest.fixture
def registry() -> AgentRegistry:
    return new_registry(lambda: 1000.0)


@pytest.fixture
def agent(registry: AgentRegistry) -> Agent:
    return registry.register("gpu-1", Address.parse("http://127.0.0.1:1"))[0]


def anybody(agent: Agent) -> bool:
    return True


def test_a_report_of_somebody_elses_agent_is_left(registry: AgentRegistry, agent: Agent) -> None:
    body = json.dumps(report()).encode()
    assert not take_report(registry, "/api/agents/gpu-1/metrics", body, lambda each: each is not agent)
    assert agent.metrics is None


def test_a_report_is_taken_in_by_id_and_by_name(registry: AgentRegistry, agent: Agent) -> None:
    for key, cpu in ((agent.id, 41.5), ("gpu-1", 42.5)):
        assert take_report(registry, f"/api/agents/{key}/metrics", json.dumps(report(cpu=cpu)).encode(), anybody)
        assert agent.metrics is not None
        assert agent.metrics.cpu_usage == cpu


@pytest.mark.parametrize(
    "path",
    [
        "/api/agents/nobody/metrics",
        "/api/agents/gpu%2D1/metrics",
        "/api/agents/gpu-1/metrics/",
        "/api/agents/gpu-1/metrics\n",
        "/api/agents//metrics",
        "/api/agents/gpu-1/drain",
        "/api/agents/gpu-1",
    ],
)
def test_what_is_no_report_of_a_known_agent_is_left(registry: AgentRegistry, agent: Agent, path: str) -> None:
    assert not take_report(registry, path, json.dumps(report()).encode(), anybody)
    assert agent.metrics is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", json.dumps(report(cpu=101)).encode(), FUTURE])
def test_a_report_that_is_wrong_is_left(registry: AgentRegistry, agent: Agent, body: bytes) -> None:
    assert not take_report(registry, "/api/agents/gpu-1/metrics", body, anybody)
    assert agent.metrics is None
