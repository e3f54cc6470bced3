from __future__ import annotations

import json
from typing import Any

import pytest

from agent_reporter.wire import ModelEntry
from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import Outcome, Statistics
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.gateway.attempts import FailureKind
from ollama_balancer.gateway.callers import Caller
from ollama_balancer.gateway.context import RequestContext
from ollama_balancer.gateway.decisions import Answer, Broadcast, Forward, Wait
from ollama_balancer.gateway.messages import ClientRequest
from ollama_balancer.gateway.router import (
    MAX_CORRECTIONS,
    MAX_LISTED,
    MAX_SHOWN,
    Router,
)
from ollama_balancer.ollama.errors import Blame
from ollama_balancer.ollama.routes import ROUTES, Dialect, Kind, Route, dialect_of
from tests.core.fakes import Clock, address, entries, fleet, new_registry, report
from tests.packing import packed

CHAT = b'{"model": "m", "messages": []}'


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> AgentRegistry:
    return new_registry(clock)


class ParsedRequest:
    """One request and what became of it so far."""

    def __init__(
        self,
        registry: AgentRegistry,
        path: str,
        body: bytes | None = CHAT,
        *,
        method: str = "POST",
        pin: str | None = None,
        encoding: str = "",
    ) -> None:
        self.router = Router(registry)
        self.context = RequestContext(Caller("client"), dialect_of(path), registry.clock, pin=pin)
        self.decision = self.router.begin(self.context, ClientRequest(method, path, body, encoding=encoding))

    @property
    def agent(self) -> Agent:
        assert isinstance(self.decision, Forward), self.decision
        return self.decision.agent

    @property
    def everywhere(self) -> Broadcast:
        assert isinstance(self.decision, Broadcast), self.decision
        return self.decision

    @property
    def answer(self) -> Answer:
        assert isinstance(self.decision, Answer), self.decision
        return self.decision

    @property
    def json(self) -> Any:
        return json.loads(self.answer.body)


def test_a_request_is_forwarded_to_the_chosen_agent_and_counted_there(registry: AgentRegistry) -> None:
    registry.mode = "metrics"
    _, b = fleet(registry, "a", "b")
    registry.update_metrics("b", report(10, 20))
    asked = ParsedRequest(registry, "/api/chat", b'{"model": "LIBRARY/M:latest"}')
    assert asked.agent is b
    assert b.in_flight == 1
    assert asked.context.agent is b
    assert (asked.context.mode, asked.context.why, asked.context.model) == (
        "metrics",
        "score 30",
        "LIBRARY/M:latest",
    )
    asked.context.end(Outcome.SUCCEEDED)
    assert b.in_flight == 0


def test_the_candidates_are_kept_as_they_were_the_chosen_one_first_and_the_others_in_order(
    registry: AgentRegistry,
) -> None:
    registry.mode = "metrics"
    fleet(registry, "a", "b", "c", "d")
    for name, cpu in (("a", 50), ("b", 10), ("c", 30)):
        registry.update_metrics(name, report(cpu, 20))
    asked = ParsedRequest(registry, "/api/chat")
    told = [(each.agent, each.score, each.in_flight) for each in asked.context.candidates]
    assert told == [("b", 30.0, 0), ("c", 50.0, 0), ("a", 70.0, 0), ("d", None, 0)]
    registry.mode = "adaptive"
    assert ParsedRequest(registry, "/api/chat").context.candidates == ()


def test_of_a_large_fleet_only_the_chosen_agent_is_kept(registry: AgentRegistry) -> None:
    registry.mode = "least_requests"
    fleet(registry, *(f"a{number}" for number in range(MAX_LISTED)))
    assert len(ParsedRequest(registry, "/api/chat").context.candidates) == MAX_SHOWN
    fleet(registry, *(f"a{number}" for number in range(MAX_LISTED + 1)))
    assert len(ParsedRequest(registry, "/api/chat").context.candidates) == 1


@pytest.mark.parametrize(
    "path", ["/nope", "/api/nope", "/v1/nope", "/v1/messages/count_tokens", "", "http://elsewhere/api/chat"]
)
def test_a_path_that_ollama_does_not_have_is_answered_and_never_forwarded(registry: AgentRegistry, path: str) -> None:
    fleet(registry, "a")
    asked = ParsedRequest(registry, path)
    assert asked.answer.status == 404
    assert "error" in asked.json
    assert registry.in_flight == 0


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_a_wrong_method_is_refused_with_those_that_are_allowed(registry: AgentRegistry, route: Route) -> None:
    fleet(registry, "a")
    asked = ParsedRequest(registry, route.path.replace("{}", "x"), method="PATCH")
    assert asked.answer.status == 405
    assert asked.answer.headers["Allow"] == ", ".join(route.methods)
    assert "error" in asked.json
    assert registry.in_flight == 0


@pytest.mark.parametrize("route", [r for r in ROUTES if r.kind is Kind.ANY], ids=lambda route: route.path)
def test_any_agent_will_do_where_no_model_is_concerned(registry: AgentRegistry, route: Route) -> None:
    [agent] = fleet(registry, "a")
    assert ParsedRequest(registry, route.path, b"", method=route.methods[0]).agent is agent


def test_a_body_that_names_no_model_goes_to_any_agent_for_its_words_of_refusal(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    for body in (None, b"", b"{", b'{"model": 5}'):
        assert ParsedRequest(registry, "/api/chat", body).agent is agent


def test_a_model_that_no_agent_has_is_refused_in_the_callers_protocol(registry: AgentRegistry) -> None:
    fleet(registry, "a", "b")
    body = b'{"model": "nope"}'
    ollama, openai, anthropic = (
        ParsedRequest(registry, path, body) for path in ("/api/chat", "/v1/chat/completions", "/v1/messages")
    )
    assert {asked.answer.status for asked in (ollama, openai, anthropic)} == {404}
    assert ollama.json == {"error": "model 'nope' not found"}
    assert openai.json == {
        "error": {"message": "model 'nope' not found", "type": "not_found_error", "param": None, "code": None}
    }
    assert anthropic.json["type"] == "error"
    assert anthropic.json["error"] == {"type": "not_found_error", "message": "model 'nope' not found"}
    assert anthropic.json["request_id"].startswith("req_")


def test_a_model_that_no_agent_has_is_refused_in_the_words_of_the_route(registry: AgentRegistry) -> None:
    fleet(registry, "a")
    assert ParsedRequest(registry, "/api/embed", b'{"model": "nope"}').json == {
        "error": 'model "nope" not found, try pulling it first'
    }
    show = ParsedRequest(registry, "/v1/models/nope", b"", method="GET")
    assert (show.answer.status, show.json["error"]["message"]) == (404, "model 'nope:latest' not found")


def test_an_empty_fleet_is_a_503_that_says_what_to_do(registry: AgentRegistry) -> None:
    asked = ParsedRequest(registry, "/api/chat")
    assert asked.answer.status == 503
    assert int(asked.answer.headers["Retry-After"]) > 0
    assert "ollama-agent-reporter" in asked.json["error"]
    assert "balancer_agents" in asked.json["error"]
    assert ParsedRequest(registry, "/v1/messages").json["error"]["type"] == "overloaded_error"


def test_a_model_whose_agents_are_all_away_is_a_503_and_not_a_404(registry: AgentRegistry) -> None:
    a, b, other = fleet(registry, "a", "b", "other")
    registry.inventory.update_models(other, entries("else"))
    registry.liveness.unreachable(a, "refused")
    registry.drain(b)
    asked = ParsedRequest(registry, "/api/chat")
    assert asked.answer.status == 503
    assert "Retry-After" in asked.answer.headers
    assert asked.json["error"] == "no agent that has model 'm' is online: 1 draining, 1 offline, 1 online"
    assert ParsedRequest(registry, "/api/chat", b'{"model": "nope"}').answer.status == 404


def test_beside_agents_that_are_there_one_never_heard_of_says_nothing_of_a_model(registry: AgentRegistry) -> None:
    fleet(registry, "a")
    registry.register("new", address(9))
    asked = ParsedRequest(registry, "/api/chat", b'{"model": "nope"}')
    assert (asked.answer.status, asked.json) == (404, {"error": "model 'nope' not found"})
    assert "Retry-After" not in asked.answer.headers


def test_a_model_that_an_unheard_of_agent_may_have_is_a_503_while_nobody_is_there(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    registry.liveness.unreachable(agent, "refused")
    registry.register("new", address(9))
    asked = ParsedRequest(registry, "/api/chat", b'{"model": "nope"}')
    assert asked.answer.status == 503
    assert "may have model 'nope'" in asked.json["error"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/chat", "model 'lama3.2' not found, did you mean 'llama3.2:3b'?"),
        ("/api/embed", "model \"lama3.2\" not found, try pulling it first, did you mean 'llama3.2:3b'?"),
        ("/v1/messages", "model 'lama3.2' not found, did you mean 'llama3.2:3b'?"),
    ],
)
def test_a_misspelt_model_gets_the_nearest_name_of_any_agent(registry: AgentRegistry, path: str, words: str) -> None:
    away, there = fleet(registry, "away", "there")
    registry.inventory.update_models(away, entries("qwen3"))
    registry.inventory.update_models(there, entries("llama3.2:3b"))
    registry.liveness.unreachable(away, "refused")
    asked = ParsedRequest(registry, path, b'{"model": "lama3.2"}')
    error = asked.json["error"]
    assert asked.answer.status == 404
    assert (error if isinstance(error, str) else error["message"]) == words
    assert "did you mean 'qwen3'" in ParsedRequest(registry, "/api/chat", b'{"model": "qwen-3"}').json["error"]


def test_a_request_without_a_model_is_a_503_when_all_agents_are_away(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    registry.liveness.unreachable(agent, "refused")
    assert ParsedRequest(registry, "/api/version", method="GET").json == {"error": "no agent is online: 1 offline"}


# Pins


def test_a_pinned_request_goes_where_it_says(registry: AgentRegistry) -> None:
    _, b = fleet(registry, "a", "b")
    for pin in ("b", b.id):
        asked = ParsedRequest(registry, "/api/chat", pin=pin)
        assert asked.agent is b
        assert asked.context.why == "pinned by the request"
    assert b.in_flight == 2


@pytest.mark.parametrize("route", [r for r in ROUTES if r.kind is Kind.NAMED], ids=lambda r: r.path)
def test_management_of_one_host_goes_to_the_one_that_is_named(registry: AgentRegistry, route: Route) -> None:
    _, b = fleet(registry, "a", "b")
    assert ParsedRequest(registry, route.path.replace("{}", "x"), method=route.methods[0], pin="b").agent is b


def test_what_concerns_one_host_has_to_name_it(registry: AgentRegistry) -> None:
    fleet(registry, "a")
    asked = ParsedRequest(registry, "/api/push")
    assert asked.answer.status == 400
    assert "X-Balancer-Agent" in asked.json["error"]


def test_a_pin_to_an_unknown_agent_is_a_404(registry: AgentRegistry) -> None:
    fleet(registry, "a")
    asked = ParsedRequest(registry, "/api/chat", pin="nobody")
    assert asked.answer.status == 404
    assert "'nobody'" in asked.json["error"]


def test_a_pin_to_an_agent_that_is_away_is_a_503(registry: AgentRegistry) -> None:
    a, b = fleet(registry, "a", "b")
    registry.drain(a)
    registry.liveness.unreachable(b, "refused")
    for pin, state in (("a", "draining"), ("b", "offline: refused")):
        asked = ParsedRequest(registry, "/api/chat", pin=pin)
        assert asked.answer.status == 503
        assert "Retry-After" in asked.answer.headers
        assert asked.json == {"error": f"agent '{pin}' is {state}"}


def test_a_pinned_request_whose_agent_fails_is_not_sent_elsewhere(registry: AgentRegistry) -> None:
    fleet(registry, "a", "b")
    asked = ParsedRequest(registry, "/api/chat", pin="b")
    asked.context.fail_attempt("refused")
    asked.decision = asked.router.retry(asked.context)
    assert asked.answer.status == 502
    assert "b: refused" in asked.json["error"]
    assert registry.in_flight == 0


# Retries


@pytest.mark.parametrize("retries", [0, 1, 2, 3, 10])
def test_other_agents_are_tried_up_to_the_number_of_retries(registry: AgentRegistry, retries: int) -> None:
    agents = fleet(registry, "a", "b", "c", "d")
    asked = ParsedRequest(registry, "/api/chat")
    asked.router.retries = retries
    tried = []
    while isinstance(asked.decision, Forward):
        tried.append(asked.agent)
        assert asked.agent.in_flight == 1
        asked.context.fail_attempt("reset")
        asked.decision = asked.router.retry(asked.context)
    assert len(tried) == min(1 + retries, len(agents))
    assert len(set(tried)) == len(tried)
    assert asked.answer.status == 502
    assert all(f"{agent.name}: reset" in asked.json["error"] for agent in tried)
    assert registry.in_flight == 0


def test_a_retry_goes_only_to_agents_that_have_the_model(registry: AgentRegistry) -> None:
    a, b, c = fleet(registry, "a", "b", "c")
    registry.inventory.update_models(b, entries("else"))
    asked = ParsedRequest(registry, "/api/chat")
    first = asked.agent
    asked.context.fail_attempt("reset")
    asked.decision = asked.router.retry(asked.context)
    assert {first, asked.agent} == {a, c}


def read_demand(registry: AgentRegistry) -> Demand:
    asked = ParsedRequest(registry, "/api/chat")
    asked.context.end(Outcome.CANCELLED)
    assert asked.context.demand
    return asked.context.demand


def attempts_of(router: Router, registry: AgentRegistry, kind: Blame | FailureKind) -> tuple[int, Answer]:
    """How many agents a request is sent to that all of them fail, and what its caller is told."""
    context = RequestContext(Caller("client"), Dialect.OLLAMA, registry.clock)
    decision = router.begin(context, ClientRequest("POST", "/api/chat", CHAT))
    while isinstance(decision, Forward):
        context.fail_attempt("it failed", kind)
        decision = router.retry(context)
    assert isinstance(decision, Answer)
    return context.attempts, decision


def test_where_all_is_overloaded_failover_adds_a_fifth_to_the_load(registry: AgentRegistry, clock: Clock) -> None:
    fleet(registry, "a", "b", "c", "d")
    router = Router(registry)
    attempts = 0
    for _ in range(500):
        clock.now += 0.01
        more, answer = attempts_of(router, registry, Blame.HOST_CANNOT)
        attempts += more
    assert attempts == 500 + 100 + 30
    assert "the retry budget is used up" in json.loads(answer.body)["error"]
    assert registry.in_flight == 0
    clock.now += 10
    for agent in registry:
        registry.liveness.reached(agent)
    assert attempts_of(router, registry, Blame.HOST_CANNOT)[0] == 3


@pytest.mark.parametrize("kind", [Blame.LACKS_ROUTE, Blame.HOST_REFUSES, FailureKind.CONNECT])
def test_an_attempt_that_no_host_has_worked_on_costs_no_retry(
    registry: AgentRegistry, kind: Blame | FailureKind
) -> None:
    fleet(registry, "a", "b", "c")
    router = Router(registry)
    for _ in range(200):
        attempts, answer = attempts_of(router, registry, kind)
        assert attempts == 3
        assert "the retry budget is used up" not in json.loads(answer.body)["error"]
    assert attempts_of(router, registry, Blame.HOST_BUSY)[0] == 3


def test_what_a_host_that_has_died_had_running_goes_elsewhere_whatever_the_budget(registry: AgentRegistry) -> None:
    agents = fleet(registry, "a", "b", "c", "d")
    registry.slots = 100
    router = Router(registry)
    contexts = []
    for _ in range(400):
        context = RequestContext(Caller("client"), Dialect.OLLAMA, registry.clock)
        assert isinstance(router.begin(context, ClientRequest("POST", "/api/chat", CHAT)), Forward)
        contexts.append(context)
    while router.retry_budget.spend():
        pass
    died = [context for context in contexts if context.agent is agents[0]]
    assert len(died) == 100
    registry.slots = 200
    registry.liveness.unreachable(agents[0], "connection refused")
    for context in died:
        context.fail_attempt("connection reset", FailureKind.BROKEN)
        assert isinstance(router.retry(context), Forward)


def test_a_request_without_anybody_left_spends_no_retry(registry: AgentRegistry) -> None:
    fleet(registry, "a")
    router = Router(registry)
    for _ in range(100):
        assert attempts_of(router, registry, Blame.HOST_CANNOT)[0] == 1
    for name in ("b", "c"):
        agent, _ = registry.register(name, address(ord(name)))
        registry.inventory.update_models(agent, entries("m"))
        registry.liveness.reached(agent)
    assert attempts_of(router, registry, Blame.HOST_CANNOT)[0] == 3


def test_a_model_that_cannot_be_loaded_is_tried_by_two(registry: AgentRegistry) -> None:
    fleet(registry, "a", "b", "c", "d")
    router = Router(registry, retries=3)
    assert attempts_of(router, registry, Blame.CANNOT_LOAD)[0] == 2
    demand = read_demand(registry)
    for agent in registry:
        registry.avoidance.cannot_load(agent, demand.model, demand.runner)
    assert set(registry.avoidance.for_demand(demand)) == set(registry)
    assert attempts_of(router, registry, Blame.CANNOT_LOAD)[0] == 1  # one, for the server's words
    assert attempts_of(router, registry, Blame.HOST_CANNOT)[0] == 4


# Merged answers


def test_lists_are_answered_for_the_whole_fleet_without_asking_anyone(registry: AgentRegistry) -> None:
    a, b = fleet(registry, "a", "b")
    registry.inventory.update_models(b, entries("m", "n"))
    registry.inventory.update_loaded(a, [ModelEntry(name="m")])
    tags, ps, models = (
        ParsedRequest(registry, path, None, method="GET") for path in ("/api/tags", "/api/ps", "/v1/models")
    )
    assert {asked.answer.status for asked in (tags, ps, models)} == {200}
    assert sorted(entry["name"] for entry in tags.json["models"]) == ["m", "n"]
    assert ps.json == {"models": [{"name": "m", "agent": "a"}]}
    assert sorted(entry["id"] for entry in models.json["data"]) == ["m", "n"]
    assert tags.answer.problem is None
    assert registry.in_flight == 0


def test_lists_leave_out_agents_that_are_offline(registry: AgentRegistry) -> None:
    a, b = fleet(registry, "a", "b")
    registry.inventory.update_models(b, entries("n"))
    registry.liveness.unreachable(a, "refused")
    assert ParsedRequest(registry, "/api/tags", None, method="GET").json == {"models": [{"name": "n"}]}
    registry.liveness.unreachable(b, "refused")
    asked = ParsedRequest(registry, "/v1/models", None, method="GET")
    assert asked.answer.status == 503
    assert asked.json["error"]["type"] == "api_error"


def test_a_pinned_list_comes_from_that_agent(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    assert ParsedRequest(registry, "/api/tags", None, method="GET", pin="a").agent is agent


def test_the_version_is_the_lowest_and_the_root_is_the_servers(registry: AgentRegistry) -> None:
    a, b = fleet(registry, "a", "b")
    registry.inventory.update_version(a, "0.33.0")
    registry.inventory.update_version(b, "0.9.1")
    assert ParsedRequest(registry, "/api/version", None, method="GET").json == {"version": "0.9.1"}
    root = ParsedRequest(registry, "/", None, method="GET").answer
    assert (root.status, root.body, root.content_type) == (200, b"Ollama is running", "text/plain; charset=utf-8")
    for agent in (a, b):
        registry.liveness.unreachable(agent, "refused")
    assert ParsedRequest(registry, "/", None, method="HEAD").answer.status == 503


def test_an_agent_is_asked_for_the_version_while_none_is_known(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    assert ParsedRequest(registry, "/api/version", None, method="GET").agent is agent


def test_a_path_that_is_nearly_a_routes_is_redirected(registry: AgentRegistry) -> None:
    fleet(registry, "a")
    got = ParsedRequest(registry, "/api/tags/?x=1", None, method="GET").answer
    assert (got.status, got.headers["Location"]) == (301, "/api/tags?x=1")
    assert got.body == b'<a href="/api/tags?x=1">Moved Permanently</a>.\n\n'
    posted = ParsedRequest(registry, "/api/chat/", CHAT).answer
    assert (posted.status, posted.body, posted.headers["Location"]) == (307, b"", "/api/chat")


# Requests that go to several agents


@pytest.mark.parametrize("route", [r for r in ROUTES if r.kind is Kind.EVERY], ids=lambda r: r.path)
def test_management_goes_to_every_agent_that_takes_requests_or_to_the_one_that_is_named(
    registry: AgentRegistry, route: Route
) -> None:
    a, b, c, d = fleet(registry, "a", "b", "c", "d")
    registry.liveness.unreachable(c, "refused")
    registry.drain(d)
    path = route.path.replace("{}", "x")
    assert ParsedRequest(registry, path, method=route.methods[0]).everywhere.agents == (a, b)
    assert ParsedRequest(registry, path, method=route.methods[0], pin="b").everywhere.agents == (b,)
    assert ParsedRequest(registry, path, method=route.methods[0], pin="c").answer.status == 503
    assert registry.in_flight == 0
    for agent in (a, b):
        registry.liveness.unreachable(agent, "refused")
    assert ParsedRequest(registry, path, method=route.methods[0]).answer.status == 503


@pytest.mark.parametrize(("path", "more"), [("/api/generate", b""), ("/api/chat", b', "messages": []')])
def test_a_request_to_unload_goes_to_every_agent_that_has_the_model(
    registry: AgentRegistry, path: str, more: bytes
) -> None:
    a, b, c = fleet(registry, "a", "b", "c")
    registry.inventory.update_models(b, entries("else"))
    body = b'{"model": "M", "keep_alive": 0' + more + b"}"
    assert ParsedRequest(registry, path, body).everywhere.agents == (a, c)
    assert ParsedRequest(registry, path, body, pin="c").agent is c
    registry.drain(c)
    assert ParsedRequest(registry, path, body).agent is a
    assert ParsedRequest(registry, path, body.replace(b'"M"', b'"nope"')).answer.status == 404


# Inventories that turn out to be wrong


def test_an_agent_without_the_model_after_all_counts_as_no_retry(registry: AgentRegistry) -> None:
    agents = fleet(registry, "a", "b", "c", "d")
    asked = ParsedRequest(registry, "/api/chat")
    asked.router.retries = 0
    seen = []
    while isinstance(asked.decision, Forward):
        seen.append(asked.agent)
        agent = asked.context.fail_attempt("does not have the model", Blame.LACKS_MODEL)
        assert agent is asked.agent
        registry.inventory.forget_model(agent, "m:latest")
        asked.decision = asked.router.retry(asked.context)
    assert set(seen) == set(agents)
    assert not registry.inventory.has_model("m:latest")
    assert all(agent.stats == Statistics() and agent.in_flight == 0 for agent in agents)
    assert "does not have the model" in asked.json["error"]


def test_so_many_wrong_inventories_in_a_row_are_given_up(registry: AgentRegistry) -> None:
    fleet(registry, *(f"a{n}" for n in range(MAX_CORRECTIONS * 2)))
    asked = ParsedRequest(registry, "/api/chat")
    while isinstance(asked.decision, Forward):
        asked.context.fail_attempt("does not have the model", Blame.LACKS_MODEL)
        asked.decision = asked.router.retry(asked.context)
    assert asked.context.attempts == MAX_CORRECTIONS + 1


def test_an_unknown_model_in_a_body_that_is_no_json_is_for_an_agent_to_refuse(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    assert ParsedRequest(registry, "/api/chat", b'{"model": "nope", "messages": [}').agent is agent
    assert ParsedRequest(registry, "/api/chat", b'{"model": "nope", "messages": []}').answer.status == 404


def test_a_cloud_model_needs_no_agent_that_has_it(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    asked = ParsedRequest(registry, "/api/chat", b'{"model": "gpt-oss:120b-cloud"}')
    assert asked.agent is agent
    assert asked.context.model == "gpt-oss:120b-cloud"


def test_local_behind_a_name_is_no_part_of_it(registry: AgentRegistry) -> None:
    _, b = fleet(registry, "other", "b")
    registry.inventory.update_models(b, entries("qwen3:8b"))
    for path in ("/api/chat", "/v1/chat/completions", "/api/show"):
        asked = ParsedRequest(registry, path, b'{"model": "Qwen3:8b:local", "messages": []}')
        assert asked.agent is b
        assert (asked.context.model, asked.context.model_name) == ("Qwen3:8b:local", "qwen3:8b")
    assert ParsedRequest(registry, "/v1/models/qwen3:8b:local", b"", method="GET").agent is b
    assert ParsedRequest(registry, "/api/chat", b'{"model": "qwen3:local"}').json["error"] == (
        "model 'qwen3:local' not found, did you mean 'qwen3:8b'?"
    )


def test_a_model_that_is_tagged_local_is_that_one(registry: AgentRegistry) -> None:
    a, b = fleet(registry, "a", "b")
    registry.inventory.update_models(a, entries("mine:latest"))
    registry.inventory.update_models(b, entries("mine:local"))
    assert ParsedRequest(registry, "/api/chat", b'{"model": "mine:local"}').agent is b
    assert ParsedRequest(registry, "/api/chat", b'{"model": "mine"}').agent is a


def test_a_compressed_request_takes_a_slot_of_its_model_and_waits_for_one(registry: AgentRegistry) -> None:
    registry.slots = 1
    [agent] = fleet(registry, "a")
    body = packed("zstd", b'{"model": "m", "input": "hi"}')
    first = ParsedRequest(registry, "/v1/responses", body, encoding="zstd")
    assert first.agent is agent
    assert (first.context.slot_model, first.context.body_bytes) == ("m:latest", 29)
    assert isinstance(ParsedRequest(registry, "/v1/responses", body, encoding="zstd").decision, Wait)
    first.context.end(Outcome.SUCCEEDED)
    assert ParsedRequest(registry, "/v1/responses", body, encoding="zstd").agent is agent


@pytest.mark.parametrize("pin", [None, "a"])
@pytest.mark.parametrize(
    ("path", "body", "encoding"),
    [
        ("/api/chat", b'{"x":[' + b"[]," * 60_000 + b'[]],"model":"m"}', ""),
        ("/v1/chat/completions", packed("gzip", CHAT), "gzip"),
        ("/api/generate", packed("zstd", CHAT), "zstd"),
        ("/v1/audio/transcriptions", CHAT, ""),
    ],
)
def test_what_cannot_be_read_gets_past_no_queue(
    registry: AgentRegistry, path: str, body: bytes, encoding: str, pin: str | None
) -> None:
    registry.slots = 1
    fleet(registry, "a")
    asked = ParsedRequest(registry, path, body, encoding=encoding, pin=pin)
    assert asked.answer.status == 400
    assert ("type" in str(asked.json["error"])) == path.startswith("/v1/")
    assert registry.in_flight == 0
