from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy.test import tflow
from mitmproxy.utils import emoji

from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.gateway.callers import Caller
from ollama_balancer.gateway.context import RequestContext
from ollama_balancer.mitm.inspection.annotations import (
    BROKEN,
    CANCELLED,
    FAILED,
    MARKERS,
    METADATA_KEY,
    REFUSED,
    REJECTED,
    RETRIED,
    SLOW,
    SLOW_SECONDS,
    annotate,
    comment,
)
from ollama_balancer.ollama.answer_watcher import AnswerWatcher
from ollama_balancer.ollama.routes import Dialect
from tests.core.fakes import Clock, fleet, new_registry


def served(clock: Clock, content_type: str, first_byte: float = 0.2, **fields: Any) -> RequestContext:
    """A request that gpu-1 began to answer after so many seconds, in two seconds more."""
    registry = new_registry(clock)
    [agent] = fleet(registry, "gpu-1")
    context = RequestContext(
        Caller("client"), Dialect.OLLAMA, clock, model="tiny-a", mode="metrics", why="score 30", **fields
    )
    context.take(registry.limiter.take(agent))
    clock.now += first_byte
    context.first_byte = clock.now
    context.watcher = AnswerWatcher(content_type)
    context.tokens_per_second = 81.4
    clock.now += 2.0
    context.end(Outcome.SUCCEEDED)
    clock.now += 5.0  # a person holds its answer
    return context


def test_a_stream_is_told_by_agent_model_reason_speed_and_time_to_first_token() -> None:
    context = served(Clock(), "application/x-ndjson")
    assert comment(context) == "→ gpu-1 · tiny-a · 81 tok/s · TTFT 200 ms · metrics: score 30"


def test_an_answer_in_one_piece_is_told_by_the_time_that_it_took() -> None:
    context = served(Clock(), "application/json", first_byte=10.0)
    assert comment(context) == "→ gpu-1 · tiny-a · 81 tok/s · in 12.0 s · metrics: score 30"


def test_a_request_in_the_line_is_told_to_wait() -> None:
    context = RequestContext(Caller("client"), Dialect.OLLAMA, Clock(), model="tiny-a", waiting_since=1000.0)
    assert comment(context) == "waiting for a free agent · tiny-a"


def test_a_retried_request_is_told_with_what_was_tried_and_is_marked() -> None:
    registry = new_registry(Clock())
    a, b = fleet(registry, "a", "b")
    context = RequestContext(Caller("client"), Dialect.OLLAMA, Clock())
    context.take(registry.limiter.take(a))
    context.fail_attempt("refused")
    context.take(registry.limiter.take(b))
    context.end(Outcome.SUCCEEDED)
    flow = tflow.tflow(resp=True)
    annotate(flow, context)
    assert flow.comment == "→ b · attempt 2 (a: refused)"
    assert flow.marked == RETRIED
    assert json.loads(json.dumps(flow.metadata[METADATA_KEY]))["attempts"] == 2


@pytest.mark.parametrize(
    ("outcome", "mark", "begin"),
    [
        (Outcome.SUCCEEDED, "", "→ balancer"),
        (Outcome.CANCELLED, CANCELLED, "→ no agent · cancelled"),
        (Outcome.FAILED, REFUSED, "→ no agent · no agent is online"),
    ],
)
def test_what_went_wrong_is_marked_and_nothing_else(outcome: Outcome, mark: str, begin: str) -> None:
    context = RequestContext(Caller("client"), Dialect.OLLAMA, Clock())
    context.end(outcome, None if outcome is Outcome.SUCCEEDED else "no agent is online")
    flow = tflow.tflow()
    annotate(flow, context)
    assert flow.comment == begin
    assert flow.marked == mark


def marked(context: RequestContext, by_person: str = "") -> str:
    flow = tflow.tflow(resp=True)
    flow.marked = by_person
    annotate(flow, context)
    return flow.marked


def test_an_answer_that_breaks_off_and_one_that_is_an_error_are_told_apart() -> None:
    for content_type, expected in (("text/event-stream", BROKEN), ("application/json", FAILED)):
        context = served(Clock(), content_type)
        context.outcome = Outcome.FAILED
        assert marked(context) == expected


def test_a_late_first_token_is_marked_as_slow() -> None:
    assert marked(served(Clock(), "text/event-stream", SLOW_SECONDS)) == ""
    assert marked(served(Clock(), "text/event-stream", SLOW_SECONDS + 0.1)) == SLOW


@pytest.mark.parametrize("mark", [":red_circle:", SLOW, FAILED])
def test_a_mark_that_a_person_has_set_stays(mark: str) -> None:
    assert marked(served(Clock(), "text/event-stream"), mark) == mark


def test_what_was_asked_and_by_whom_is_told() -> None:
    context = served(Clock(), "application/x-ndjson", excerpt="Why is the sky blue?")
    context.caller = Caller("client", "10.0.0.7")
    assert comment(context) == (
        "→ gpu-1 · tiny-a · “Why is the sky blue?” · 10.0.0.7 · 81 tok/s · TTFT 200 ms · metrics: score 30"
    )
    waiting = RequestContext(
        Caller("client"), Dialect.OLLAMA, Clock(), model="tiny-a", waiting_since=1000.0, excerpt="Hello"
    )
    assert comment(waiting) == "waiting for a free agent · tiny-a · “Hello”"


def test_what_is_the_callers_fault_is_told_with_its_status_and_marked() -> None:
    registry = new_registry(Clock())
    context = RequestContext(Caller("client"), Dialect.OLLAMA, Clock(), model="m", mode="metrics", why="score 30")
    [agent] = fleet(registry, "a")
    context.take(registry.limiter.take(agent))
    context.status = 400
    context.end(Outcome.REJECTED, "m does not support tools")
    assert comment(context) == "→ a · m · metrics: score 30 · rejected with 400: m does not support tools"
    assert marked(context, "") == REJECTED


def test_the_markers_are_known_to_mitmproxy() -> None:
    assert MARKERS - {""} <= emoji.emoji.keys()


@settings(derandomize=True, deadline=None)
@given(st.text(), st.text(), st.text())
def test_a_comment_is_one_short_line_whatever_comes_from_outside(model: str, reason: str, problem: str) -> None:
    registry = new_registry(Clock())
    [agent] = fleet(registry, "a")
    context = RequestContext(Caller("client"), Dialect.OLLAMA, Clock(), model=model, mode="metrics", why="score 30")
    context.take(registry.limiter.take(agent))
    context.fail_attempt(reason)
    context.end(Outcome.FAILED, problem)
    line = comment(context)
    assert line.isprintable()
    assert line.splitlines() == [line]


def test_a_long_name_from_outside_is_cut() -> None:
    context = RequestContext(Caller("client"), Dialect.OLLAMA, Clock(), model="x\n\x1b[31m\u202e" + "y" * 100_000)
    line = comment(context)
    assert line.startswith("→ no agent · x  [31m y")
    assert line.endswith("…")
    assert len(line) < 300
