from __future__ import annotations

import json

from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.gateway.callers import Caller
from ollama_balancer.gateway.context import RequestContext
from ollama_balancer.gateway.timeouts import Deadlines
from ollama_balancer.ollama.routes import Dialect
from tests.core.fakes import Clock, entries, fleet, new_registry, report
from tests.gateway.timers import Timers


def context(clock: Clock | None = None) -> RequestContext:
    return RequestContext(Caller("client"), Dialect.OLLAMA, clock or Clock())


def test_a_request_ends_once_and_gives_its_lease_back_once() -> None:
    registry = new_registry(Clock())
    [agent] = fleet(registry, "a")
    ours = context()
    ours.take(registry.limiter.take(agent))
    assert ours.end(Outcome.FAILED, "reset")
    assert not ours.end(Outcome.SUCCEEDED)
    assert (ours.outcome, ours.problem) == (Outcome.FAILED, "reset")
    assert (agent.in_flight, agent.stats.failed, agent.stats.succeeded) == (0, 1, 0)


def test_a_request_without_an_agent_can_end() -> None:
    ours = context()
    assert ours.end(Outcome.SUCCEEDED)
    assert ours.agent is None


def test_a_failed_attempt_is_counted_against_its_agent_and_leaves_room_for_the_next() -> None:
    registry = new_registry(Clock())
    a, b = fleet(registry, "a", "b")
    ours = context()
    ours.take(registry.limiter.take(a))
    assert ours.fail_attempt("refused") is a
    assert ours.fail_attempt("refused again") is None
    ours.take(registry.limiter.take(b))
    assert ours.end(Outcome.SUCCEEDED)
    assert (a.stats.failed, b.stats.succeeded, registry.in_flight) == (1, 1, 0)
    assert (ours.agent, ours.attempts, ours.tried) == (b, 2, [a, b])
    assert [(failure.agent, failure.reason) for failure in ours.failures] == [("a", "refused")]


def test_why_an_attempt_was_aborted_is_not_told_of_the_next_one() -> None:
    registry = new_registry(Clock())
    a, b = fleet(registry, "a", "b")
    ours = context()
    ours.take(registry.limiter.take(a))
    ours.abort_reason = "it went offline"
    ours.fail_attempt(ours.abort_reason)
    ours.take(registry.limiter.take(b))
    assert ours.abort_reason is None


def test_the_time_for_a_first_byte_is_that_of_all_attempts_and_ends_with_the_request() -> None:
    clock, expired = Clock(), list[RequestContext]()
    timers = Timers(clock)
    deadlines = Deadlines(clock, expired.append, timers.call_later)
    ours = context(clock)
    ours.start_timer(10, deadlines)
    ours.start_timer(99, deadlines)
    clock.now += 4
    ours.stop_timer()
    ours.stop_timer()
    assert len(deadlines) == 0
    clock.now += 100
    ours.start_timer(10, deadlines)
    timers.advance(clock.now + 5.5)
    assert expired == []
    timers.advance(clock.now + 1)
    assert expired == [ours]
    ours.stop_timer()
    ours.start_timer(10, deadlines)
    ours.end(Outcome.CANCELLED)
    assert len(deadlines) == 0


def test_the_record_of_a_request_is_json() -> None:
    clock = Clock()
    registry = new_registry(clock)
    a, b = fleet(registry, "a", "b")
    ours = context(clock)
    ours.model, ours.mode, ours.why, ours.pin = "Tiny-A", "metrics", "score 30", "b"
    ours.request_id = "r-1"
    ours.take(registry.limiter.take(a))
    ours.fail_attempt("refused")
    ours.take(registry.limiter.take(b))
    ours.first_byte = clock.now + 0.25
    ours.tokens_per_second = 81.2345
    clock.now += 1.5
    ours.end(Outcome.SUCCEEDED)
    clock.now += 1.0
    record = ours.record()
    assert json.loads(json.dumps(record)) == {
        "request_id": "r-1",
        "agent": "b",
        "url": "http://10.0.0.2:11434",
        "mode": "metrics",
        "why": "score 30",
        "model": "Tiny-A",
        "options": [],
        "candidates": [],
        "room": {"slots": None, "fits": None, "loaded": 0},
        "client": "unknown",
        "key": None,
        "pinned": True,
        "priority": "normal",
        "attempts": 2,
        "waited_ms": 0.0,
        "failures": [{"agent": "a", "reason": "refused"}],
        "outcome": "succeeded",
        "status": None,
        "problem": None,
        "first_byte_ms": 250.0,
        "total_ms": 1500.0,
        "tokens_per_second": 81.23,
    }


def test_the_record_of_a_request_that_has_just_begun_is_json() -> None:
    record = json.loads(json.dumps(context().record()))
    assert (record["agent"], record["outcome"], record["attempts"], record["total_ms"]) == (None, None, 0, 0)


def test_a_record_tells_what_is_known_of_the_agents_room() -> None:
    registry = new_registry(Clock())
    [agent] = fleet(registry, "a")
    ours = context()
    ours.take(registry.limiter.take(agent))
    registry.update_metrics("a", report(num_parallel=4, max_loaded_models=3, loaded_models=entries("m", "n")))
    assert ours.record()["room"] == {"slots": 4, "fits": 3, "loaded": 2}
