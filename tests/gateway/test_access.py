"""Limits of keys over the life of a request, with a fake clock."""

import pytest

from ollama_balancer.core.access import Key, Keyring, Limits, Right
from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Agent, Source
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.demand import Demand
from ollama_balancer.gateway.access import EXPECTED_OUTPUT, INFER, Access, AccessMode
from ollama_balancer.gateway.callers import Caller
from ollama_balancer.gateway.context import RequestContext
from ollama_balancer.ollama.answer_watcher import AnswerWatcher
from ollama_balancer.ollama.requests import ParsedRequest
from ollama_balancer.ollama.routes import Dialect, find_route
from tests.core.fakes import Clock

KEY = Key("alice", limits=Limits(tokens_per_day=10_000, parallel=1))


@pytest.fixture
def access() -> Access:
    access = Access(Clock(), Clock())
    access.mode = AccessMode.KEYS
    return access


def admitted(access: Access, *, key: Key = KEY) -> RequestContext:
    caller = Caller("c", key=key, presented=True)
    context = RequestContext(caller, Dialect.OLLAMA, Clock(), route=find_route("/api/chat"), model="m")
    context.demand = Demand("m:latest", tokens=100)
    context.on_end = access.settle
    assert access.admit(context, ParsedRequest("m"), b"{}") is None
    return context


def used(access: Access) -> int:
    return 10_000 - access.limiter.remaining(KEY)[-1].remaining


def sent(context: RequestContext) -> None:
    """An agent has got it."""
    context.tried.append(Agent("a", Address("10.0.0.1", 11434), Source.STATIC, 0))


def answered(context: RequestContext, *lines: bytes) -> None:
    context.watcher = AnswerWatcher("application/x-ndjson")
    context.first_byte = context.clock()
    for line in lines:
        context.watcher.feed(line + b"\n")


PIECE = b'{"model":"m","message":{"role":"assistant","content":"x"},"done":false}'
END = b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"prompt_eval_count":90,"eval_count":7}'


def test_a_whole_answer_counts_as_the_host_says(access: Access) -> None:
    context = admitted(access)
    assert used(access) == 100 + EXPECTED_OUTPUT
    sent(context)
    answered(context, PIECE, END)
    context.end(Outcome.SUCCEEDED)
    assert (used(access), access.limiter.running("alice")) == (97, 0)


def test_an_answer_that_broke_off_counts_as_far_as_it_came(access: Access) -> None:
    context = admitted(access)
    sent(context)
    answered(context, PIECE, PIECE, PIECE)
    context.end(Outcome.CANCELLED)
    assert used(access) == 100 + 3


def test_who_leaves_before_the_first_byte_pays_what_was_reserved(access: Access) -> None:
    context = admitted(access)
    sent(context)
    context.end(Outcome.CANCELLED)
    assert used(access) == 100 + EXPECTED_OUTPUT


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELLED])
def test_what_no_host_has_worked_on_costs_nothing(access: Access, outcome: Outcome) -> None:
    context = admitted(access)
    context.end(outcome)
    context.end(outcome)
    assert (used(access), access.limiter.running("alice")) == (0, 0)


def test_a_request_over_a_limit_is_told_when_to_come_back_and_takes_nothing(access: Access) -> None:
    running = admitted(access)
    context = RequestContext(running.caller, Dialect.OPENAI, Clock(), route=find_route("/v1/chat/completions"))
    refused = access.admit(context, ParsedRequest("m"), b"{}")
    assert refused is not None
    assert (refused.status, refused.headers["Retry-After"], context.use) == (429, "1", None)
    running.end(Outcome.CANCELLED)
    assert access.limiter.running("alice") == 0


def test_where_calls_need_no_key_none_is_asked_for_or_limited(access: Access) -> None:
    access.mode = AccessMode.OPEN
    assert access.refusal(Caller("c"), INFER) is None
    disabled = Key("alice", limits=Limits(parallel=1), disabled=True)
    assert admitted(access, key=disabled).use is None
    assert admitted(access, key=disabled).use is None


@pytest.mark.parametrize(
    ("caller", "status"),
    [
        (Caller("c"), 401),
        (Caller("c", presented=True), 401),
        (Caller("c", key=Key("k", disabled=True)), 401),
        (Caller("c", key=Key("k", expires=1.0)), 401),
        (Caller("c", key=Key("k", frozenset({Right.READ}))), 403),
    ],
)
def test_who_may_not_come_in_is_told_why(access: Access, caller: Caller, status: int) -> None:
    refusal = access.refusal(caller, INFER)
    assert refusal is not None
    assert refusal.status == status


@pytest.mark.parametrize(
    ("rights", "says"),
    [(INFER, "or with a key that has the right infer"), (tuple(Right), "or with any valid key")],
)
def test_who_calls_without_a_token_is_told_where_it_is_and_which_key_does(
    access: Access, rights: tuple[Right, ...], says: str
) -> None:
    refusal = access.refusal(Caller("c"), rights, always=True)
    assert refusal is not None
    assert "by default in ~/.mitmproxy/ollama-balancer-token" in refusal.message
    assert refusal.message.endswith(says)


def test_where_no_key_can_be_checked_only_the_token_counts(access: Access) -> None:
    access.keyring = Keyring(problem="damaged at /somewhere")
    for caller in (Caller("c"), Caller("c", key=KEY)):
        refusal = access.refusal(caller, INFER)
        assert refusal is not None
        assert (refusal.status, "/somewhere" in refusal.message) == (503, False)
    assert access.refusal(Caller("c", authorized=True), INFER) is None
