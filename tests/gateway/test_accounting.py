from __future__ import annotations

import pytest

from ollama_balancer.core.access import Key
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.ledger import FIELDS, NO_KEY, TOKEN, Entry, Query
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.core.stats import RequestMetrics
from ollama_balancer.gateway.accounting import Accounting, entry_of, summarize, summarize_unrouted
from ollama_balancer.gateway.attempts import FailureKind, failure_kind
from ollama_balancer.gateway.callers import Caller
from ollama_balancer.gateway.context import RequestContext
from ollama_balancer.ollama.answer_watcher import AnswerWatcher
from ollama_balancer.ollama.errors import Blame
from ollama_balancer.ollama.management import Reply
from ollama_balancer.ollama.names import canonical_name
from ollama_balancer.ollama.routes import Dialect, find_route
from tests.core.fakes import Clock, fleet, new_registry

FINAL = b'{"done":true,"prompt_eval_count":7,"eval_count":11,"eval_duration":1000000000}\n'


def make(clock: Clock, model: str | None = "M") -> tuple[AgentRegistry, RequestContext]:
    registry = new_registry(clock)
    fleet(registry, "a", "b")
    context = RequestContext(Caller("client"), Dialect.OLLAMA, clock, route=find_route("/api/chat"), model=model)
    context.model_name = None if model is None else canonical_name(model)
    return registry, context


@pytest.mark.parametrize("kind", [*FailureKind, *Blame])
def test_attempts_in_vain_are_counted_by_what_they_are_and_not_by_their_words(kind: FailureKind | Blame) -> None:
    registry, context = make(Clock())
    context.take(registry.limiter.take(next(iter(registry))))
    context.fail_attempt("connection refused, status 503, timed out", kind)
    context.end(Outcome.FAILED, "nobody is left")
    assert summarize(context, registry).failures == (("a", str(kind)),)


def test_how_agents_failed_at_a_request_to_several_is_told_apart() -> None:
    kinds = [
        (Reply("a", None, problem="no route to host", failure="connect"), "connect"),
        (Reply("a", None, problem="cancelled"), "broken"),
        (Reply("a", 404, body=b'{"error":"model not found"}'), "lacks_model"),
        (Reply("a", 503, body=b'{"error":"server busy, please try again."}'), "busy"),
        (Reply("a", 502, body=b"<html>"), "status"),
        (Reply("a", 400, body=b'{"error":"invalid model name"}'), "caller"),
        (Reply("a", 200, problem="pull model manifest: file does not exist"), "caller"),
    ]
    for reply, kind in kinds:
        assert failure_kind(reply) == kind


def test_a_success_is_counted_with_its_times_and_tokens() -> None:
    clock = Clock()
    registry, context = make(clock)
    context.take(registry.limiter.take(next(iter(registry))))
    context.fail_attempt("status 502", Blame.HOST_CANNOT)
    context.take(registry.limiter.take(list(registry)[1]))
    clock.now += 0.5
    context.first_byte = clock.now
    context.watcher = AnswerWatcher("application/x-ndjson")
    context.watcher.feed(FINAL)
    context.tokens_per_second = 11.0
    clock.now += 1.0
    context.end(Outcome.SUCCEEDED)
    told = summarize(context, registry)
    assert (told.agent, told.model, told.route, told.outcome) == ("b", "m:latest", "/api/chat", "succeeded")
    assert (told.seconds, told.first_token, told.waited) == (1.5, 0.5, None)
    assert (told.prompt_tokens, told.output_tokens, told.tokens_per_second) == (7, 11, 11.0)
    assert told.failures == (("a", "status"),)


def test_a_model_or_a_path_that_a_client_has_made_up_is_no_label() -> None:
    registry, context = make(Clock(), model="made-up-" + "x" * 300)
    context.route = None
    context.end(Outcome.FAILED, "not found")
    told = summarize(context, registry)
    assert (told.agent, told.model, told.route, told.outcome) == ("", "other", "other", "refused")


@pytest.mark.parametrize(("status", "outcome"), [(429, "rejected"), (503, "refused")])
def test_a_caller_over_its_limit_is_no_failure_of_the_fleet(status: int, outcome: str) -> None:
    registry, context = make(Clock())
    context.status = status
    context.end(Outcome.FAILED, "over a limit")
    assert summarize(context, registry).outcome == outcome
    assert summarize_unrouted("/api/chat", status).outcome == outcome


def test_cancels_are_told_apart() -> None:
    registry, waiting = make(Clock())
    waiting.end(Outcome.CANCELLED)
    assert summarize(waiting, registry).cancelled_by == "client_waiting"
    registry, running = make(Clock())
    running.take(registry.limiter.take(next(iter(registry))))
    running.end(Outcome.CANCELLED)
    assert summarize(running, registry).cancelled_by == "client"
    registry, killed = make(Clock())
    killed.end(Outcome.CANCELLED, "killed")
    assert summarize(killed, registry).cancelled_by == "killed"


def entry(context: RequestContext, registry: AgentRegistry) -> Entry:
    return entry_of(context, summarize(context, registry))


@pytest.mark.parametrize(
    ("caller", "name"),
    [
        (Caller("c", "10.0.0.7"), NO_KEY),
        (Caller("c", "key 1f", presented=True), NO_KEY),
        (Caller("c", "alice", key=Key("alice")), "alice"),
        (Caller("c", "alice", authorized=True, key=Key("alice")), TOKEN),
    ],
)
def test_the_ledger_has_the_name_of_the_key(caller: Caller, name: str) -> None:
    registry, context = make(Clock())
    context.caller = caller
    context.end(Outcome.CANCELLED)
    assert entry(context, registry) == Entry(name, "m:latest", "", "cancelled", 0, 0, 0.0, 0.0)


def test_of_an_answer_that_broke_off_the_ledger_has_what_has_passed() -> None:
    clock = Clock()
    registry, context = make(clock)
    context.demand = Demand("m:latest", tokens=90)
    context.waited = 2.0
    clock.now += 2.0
    context.take(registry.limiter.take(next(iter(registry))))
    context.first_byte = clock.now
    context.watcher = AnswerWatcher("application/x-ndjson")
    for _ in range(4):
        context.watcher.feed(b'{"response":"word","done":false}\n')
    clock.now += 1.5
    context.end(Outcome.CANCELLED)
    assert entry(context, registry) == Entry(NO_KEY, "m:latest", "a", "cancelled", 90, 4, 1.5, 2.0)
    assert summarize(context, registry).output_tokens == 0, "as reported by hosts"


def test_the_ledger_counts_each_request_once_and_no_lists() -> None:
    registry, context = make(Clock())
    accounting = Accounting(registry, RequestMetrics(), lambda: 0.0)
    context.on_end = accounting.ended
    context.take(registry.limiter.take(next(iter(registry))))
    context.fail_attempt("status 502", Blame.HOST_CANNOT)
    context.take(registry.limiter.take(list(registry)[1]))
    assert context.end(Outcome.SUCCEEDED)
    assert not context.end(Outcome.CANCELLED)
    for route in ("/api/tags", "/api/version", "/no-such"):
        _, other = make(Clock(), model=None)
        other.route = find_route(route)
        other.on_end = accounting.ended
        other.end(Outcome.SUCCEEDED)
    accounting.count()
    groups = accounting.ledger.pending(Query(("key", "agent"), 0, 1))
    assert {group: sum(values[: FIELDS.index("prompt_tokens")]) for group, values in groups.items()} == {
        (NO_KEY, "b"): 1
    }
