from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy.test import tflow

from ollama_balancer.fleet.agent import Outcome
from ollama_balancer.fleet.registry import AgentRegistry
from ollama_balancer.inspection.annotations import METADATA_KEY, annotate, comment
from ollama_balancer.ollama.routes import Dialect
from ollama_balancer.proxying.exchange import Exchange
from tests.fleet.fakes import Clock, fleet


def test_a_success_is_told_by_agent_model_reason_speed_and_first_byte() -> None:
    registry = AgentRegistry(Clock())
    [agent] = fleet(registry, "gpu-1")
    exchange = Exchange("client", Dialect.OLLAMA, Clock(), model="tiny-a", mode="metrics", why="score 30")
    exchange.take(registry.take(agent))
    exchange.first_byte = 1000.2
    exchange.tokens_per_second = 81.4
    exchange.end(Outcome.SUCCEEDED)
    assert comment(exchange) == "→ gpu-1 · tiny-a · metrics: score 30 · 81 tok/s · first byte 200 ms"


def test_a_retried_request_is_told_with_what_was_tried_and_is_marked() -> None:
    registry = AgentRegistry(Clock())
    a, b = fleet(registry, "a", "b")
    exchange = Exchange("client", Dialect.OLLAMA, Clock())
    exchange.take(registry.take(a))
    exchange.fail_attempt("refused")
    exchange.take(registry.take(b))
    exchange.end(Outcome.SUCCEEDED)
    flow = tflow.tflow(resp=True)
    annotate(flow, exchange)
    assert flow.comment == "→ b · try 2 (a: refused)"
    assert flow.marked == ":warning:"
    assert json.loads(json.dumps(flow.metadata[METADATA_KEY]))["attempts"] == 2


@pytest.mark.parametrize(
    ("outcome", "marked", "begin"),
    [
        (Outcome.SUCCEEDED, "", "→ balancer"),
        (Outcome.CANCELLED, "", "→ no agent · cancelled"),
        (Outcome.FAILED, ":warning:", "→ no agent · no agent is online"),
    ],
)
def test_what_went_wrong_is_marked_and_nothing_else(outcome: Outcome, marked: str, begin: str) -> None:
    exchange = Exchange("client", Dialect.OLLAMA, Clock())
    exchange.end(outcome, None if outcome is Outcome.SUCCEEDED else "no agent is online")
    flow = tflow.tflow()
    annotate(flow, exchange)
    assert flow.comment == begin
    assert flow.marked == marked


@settings(derandomize=True, deadline=None)
@given(st.text(), st.text(), st.text())
def test_a_comment_is_one_short_line_whatever_comes_from_outside(model: str, reason: str, problem: str) -> None:
    registry = AgentRegistry(Clock())
    [agent] = fleet(registry, "a")
    exchange = Exchange("client", Dialect.OLLAMA, Clock(), model=model, mode="metrics", why="score 30")
    exchange.take(registry.take(agent))
    exchange.fail_attempt(reason)
    exchange.end(Outcome.FAILED, problem)
    line = comment(exchange)
    assert line.isprintable()
    assert line.splitlines() == [line]


def test_a_long_name_from_outside_is_cut() -> None:
    exchange = Exchange("client", Dialect.OLLAMA, Clock(), model="x\n\x1b[31m\u202e" + "y" * 100_000)
    line = comment(exchange)
    assert line.startswith("→ no agent · x  [31m y")
    assert line.endswith("…")
    assert len(line) < 300
