"""What a finished request says of itself."""

from __future__ import annotations

import pytest

from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.leases import SlotLease
from ollama_balancer.core.stats import RequestMetrics, RequestSummary
from ollama_balancer.gateway.accounting import KILLED, Accounting
from ollama_balancer.gateway.attempts import FailureKind
from ollama_balancer.gateway.callers import Caller
from ollama_balancer.gateway.context import RequestContext
from ollama_balancer.gateway.request_lines import RequestLine
from ollama_balancer.ollama.answer_watcher import AnswerWatcher
from ollama_balancer.ollama.errors import Blame
from ollama_balancer.ollama.routes import Dialect, find_route
from tests.core.fakes import Clock, fleet, new_registry


class Scene:
    def __init__(self) -> None:
        self.clock = Clock()
        self.registry = new_registry(self.clock)
        self.agents = fleet(self.registry, "gpu-1", "gpu-2")
        self.accounting = Accounting(self.registry, RequestMetrics())
        self.lines: list[RequestLine] = []
        self.accounting.show = self.show

    def show(self, context: RequestContext, summary: RequestSummary) -> None:
        self.lines.append(RequestLine(context, summary))

    def context(self, path: str = "/api/chat", model: str = "llama3.2") -> RequestContext:
        return RequestContext(
            Caller("c", "10.0.0.7", "10.0.0.7"),
            Dialect.OLLAMA,
            self.clock,
            is_routed=True,
            route=find_route(path),
            path=path,
            method="POST",
            model=model,
            on_end=self.accounting.ended,
        )

    def take(self, context: RequestContext, agent: int) -> None:
        demand = Demand("llama3.2:latest", tokens=5, route="/api/chat")
        context.take(self.registry.limiter.take(self.agents[agent], "llama3.2:latest", demand))
        assert isinstance(context.lease, SlotLease)
        context.lease.cold = False

    def answer(self, context: RequestContext, load: float | None = 0.02) -> None:
        """A stream of 180 tokens, the first of which comes after 0.31 s."""
        self.clock.now += 0.31
        context.first_byte = self.clock.now
        context.watcher = AnswerWatcher("application/x-ndjson")
        loads = "" if load is None else f'"load_duration":{int(load * 1e9)},'
        context.watcher.feed(b'{"response":"x","done":false}\n')
        context.watcher.feed(f'{{"done":true,{loads}"prompt_eval_count":7,"eval_count":180}}\n'.encode())
        context.tokens_per_second = 42.3
        self.clock.now += 4.25

    def line(self) -> str:
        [line] = self.lines
        return str(line)


def test_an_answer_has_its_figures_in_the_order_of_the_columns() -> None:
    scene = Scene()
    context = scene.context()
    scene.take(context, 1)
    scene.answer(context)
    context.status = 200
    context.end(Outcome.SUCCEEDED)
    assert scene.line() == "gpu-2  llama3.2  200  42 tok/s  TTFT 0.31 s  180 tokens  warm"
    assert not scene.lines[0].is_trouble


@pytest.mark.parametrize(
    ("load", "cold", "waited", "notes"),
    [
        (3.1, False, 0.0, "loaded 3.1 s"),
        (0.2, True, 0.0, "loaded 0.20 s"),
        (None, True, 2.04, "loaded, queued 2.0 s"),
        (None, False, 0.0, "warm"),
    ],
)
def test_what_an_answer_had_to_wait_for_is_noted(load: float | None, cold: bool, waited: float, notes: str) -> None:
    scene = Scene()
    context = scene.context()
    scene.take(context, 0)
    assert isinstance(context.lease, SlotLease)
    context.lease.cold = cold
    context.waited = waited
    scene.answer(context, load)
    context.end(Outcome.SUCCEEDED)
    assert scene.lines[0].cells.notes == notes


def test_a_retried_request_says_what_was_tried_and_one_corrected_is_no_trouble() -> None:
    scene = Scene()
    for kind, trouble in ((FailureKind.CONNECT, True), (Blame.LACKS_MODEL, False)):
        context = scene.context()
        scene.take(context, 0)
        context.fail_attempt("connection refused\x1b[2J", kind)
        scene.take(context, 1)
        scene.answer(context)
        context.status = 200
        context.end(Outcome.SUCCEEDED)
        assert scene.lines[-1].cells.trouble == "tried first: gpu-1 (connection refused [2J)"
        assert scene.lines[-1].is_trouble is trouble


def test_when_all_attempts_have_failed_the_error_names_them_once() -> None:
    scene = Scene()
    context = scene.context()
    scene.take(context, 0)
    context.fail_attempt("reset")
    context.status = 502
    context.end(Outcome.FAILED, "no agent could answer (gpu-1: reset)")
    assert scene.line() == "-  llama3.2  502  POST /api/chat (no agent could answer (gpu-1: reset))"
    assert scene.lines[0].is_trouble


@pytest.mark.parametrize(
    ("problem", "trouble"),
    [
        (None, "the client left after 4.6 s"),
        ("Client disconnected.", "the client left after 4.6 s"),
        (KILLED, "killed in mitmproxy after 4.6 s"),
        ("the client has read nothing of its answer for 60 s", "the client has read nothing of its answer for 60 s"),
    ],
)
def test_a_client_that_leaves_is_no_trouble_and_keeps_its_figures(problem: str | None, trouble: str) -> None:
    scene = Scene()
    context = scene.context()
    scene.take(context, 0)
    scene.answer(context)
    context.end(Outcome.CANCELLED, problem)
    assert scene.line() == f"gpu-1  llama3.2  -  42 tok/s  TTFT 0.31 s  180 tokens ({trouble})"
    assert not scene.lines[0].is_trouble


def test_a_client_that_leaves_the_queue_is_said_to_have_been_there() -> None:
    scene = Scene()
    context = scene.context()
    context.waiting_since = scene.clock.now
    scene.clock.now += 2
    context.end(Outcome.CANCELLED)
    assert scene.lines[0].cells.trouble == "the client left after 2.0 s, while it was queued"


def test_a_refused_caller_is_named_with_the_reason() -> None:
    scene = Scene()
    context = scene.context("/api/chat", model="")
    context.is_routed = False
    context.problem = "an API key is needed"
    scene.accounting.unrouted(context, 401)
    assert scene.line() == "-  -  401  POST /api/chat (an API key is needed; from 10.0.0.7)"


def test_lists_that_are_merged_are_not_worth_a_line() -> None:
    scene = Scene()
    scene.context("/api/tags").end(Outcome.SUCCEEDED)
    assert scene.lines == []
    scene.context("/api/tags").end(Outcome.FAILED, "no agent is online")
    assert "no agent is online" in scene.line()


def test_nothing_that_a_client_sends_is_more_than_printable_text() -> None:
    scene = Scene()
    context = scene.context("/api/\x1b]0;title\x07", model="x\x1b[31m\n\u202eevil" * 100)
    context.method = "GET\r\n"
    context.end(Outcome.REJECTED, "model '\x9b31m\n' not found")
    assert scene.line().isprintable()
    assert len(scene.line()) < 300
