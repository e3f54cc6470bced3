from __future__ import annotations

import json

from ollama_balancer.core.access import Key
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.stats import RequestMetrics, RequestSummary
from ollama_balancer.gateway.access_entries import MAX_MODEL, MAX_PATH, entry_of
from ollama_balancer.gateway.accounting import Accounting
from ollama_balancer.gateway.callers import Caller
from ollama_balancer.gateway.context import RequestContext
from ollama_balancer.ollama.answer_watcher import AnswerWatcher
from ollama_balancer.ollama.routes import Dialect, find_route
from tests.core.fakes import Clock, fleet, new_registry

FINAL = b'{"done":true,"prompt_eval_count":7,"eval_count":11,"eval_duration":1000000000}\n'


class Scene:
    def __init__(self) -> None:
        self.clock = Clock()
        self.registry = new_registry(self.clock)
        self.agents = fleet(self.registry, "a", "b")
        self.accounting = Accounting(self.registry, RequestMetrics())
        self.entries: list[dict[str, object]] = []
        self.accounting.log = self.add

    def add(self, context: RequestContext, summary: RequestSummary) -> None:
        self.entries.append(entry_of(context, summary, lambda: 1000.0 + self.clock.now))

    def context(self, path: str = "/api/chat") -> RequestContext:
        return RequestContext(
            Caller("c", "key alice", "10.0.0.7", key=Key("alice")),
            Dialect.OLLAMA,
            self.clock,
            route=find_route(path),
            path=path,
            method="POST",
            request_id="r-1",
            on_end=self.accounting.ended,
        )


def test_an_entry_says_who_had_what_served_by_whom() -> None:
    scene = Scene()
    arrived = scene.clock.now
    context = scene.context()
    context.model, context.model_name, context.body_bytes = "M", "m:latest", 300
    context.waited = 0.25
    context.take(scene.registry.limiter.take(scene.agents[0]))
    context.fail_attempt("refused")
    context.take(scene.registry.limiter.take(scene.agents[1]))
    scene.clock.now += 0.5
    context.first_byte = scene.clock.now
    context.watcher = AnswerWatcher("application/x-ndjson")
    context.watcher.feed(FINAL)
    scene.clock.now += 1.5
    context.status = 200
    context.end(Outcome.SUCCEEDED)
    assert json.loads(json.dumps(scene.entries)) == [
        {
            "time": 1000.0 + arrived,
            "request_id": "r-1",
            "key": "alice",
            "client": "10.0.0.7",
            "method": "POST",
            "path": "/api/chat",
            "model": "M",
            "served_model": "m:latest",
            "agent": "b",
            "attempts": 2,
            "queue_seconds": 0.25,
            "ttft_seconds": 0.5,
            "total_seconds": 2.0,
            "prompt_tokens": 7,
            "output_tokens": 11,
            "status": 200,
            "outcome": "succeeded",
            "bytes_in": 300,
            "bytes_out": len(FINAL),
        }
    ]


def test_a_refused_request_has_an_entry_too() -> None:
    scene = Scene()
    context = scene.context()
    context.answer_bytes = 40
    scene.accounting.unrouted(context, 401)
    scene.accounting.unrouted(scene.context("/x\udcff\n" * 1000), None, "client")
    refused, left = scene.entries
    assert (refused["status"], refused["bytes_out"], refused["agent"]) == (401, 40, None)
    assert (left["status"], left["outcome"]) == (None, "cancelled")
    assert len(str(left["path"])) <= MAX_PATH + 1
    assert str(left["path"]).isprintable()


def test_a_model_from_outside_is_bounded() -> None:
    scene = Scene()
    context = scene.context()
    context.model = "m" * 10_000
    context.end(Outcome.FAILED, "no such model")
    [entry] = scene.entries
    assert len(str(entry["model"])) <= MAX_MODEL + 1
    assert entry["served_model"] is None
