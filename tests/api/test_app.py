"""The control API, called over ASGI as the proxy calls it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from ollama_balancer.api import history
from ollama_balancer.api.app import ControlApi
from ollama_balancer.api.paths import CALLER, is_control_path
from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Agent, Source, agent_id
from ollama_balancer.core.agent_view import describe_agent
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.history import History
from ollama_balancer.core.observations import AnswerObservation
from ollama_balancer.core.queue import RequestQueue
from ollama_balancer.core.recent import Recent
from ollama_balancer.core.stats import RequestMetrics, RequestSummary
from ollama_balancer.gateway.callers import Caller
from tests.core.fakes import Clock, address, entries, fleet, new_registry, report

METRICS: dict[str, Any] = {
    "cpu_usage": 10,
    "memory_usage": 20,
    "active_requests": 1,
    "timestamp": "2025-02-28T12:00:00Z",
}

CHANGING_CALLS = [
    ("POST", "/api/agents"),
    ("DELETE", "/api/agents/a"),
    ("POST", "/api/agents/a/metrics"),
    ("POST", "/api/agents/a/drain"),
    ("POST", "/api/agents/a/resume"),
]


class Api:
    """The application, with a registry under a clock that stands still."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.registry = new_registry(self.clock)
        self.changes = 0
        self.request_metrics, self.recent = RequestMetrics(), Recent(self.clock)
        self.wall = 1_700_000_000.0
        self.history = History(lambda: self.wall)
        self.control = ControlApi(
            self.registry,
            RequestQueue(self.clock),
            self.request_metrics,
            self.recent,
            self.history,
            self.clock(),
            self._changed,
        )

    def _changed(self, agent: Agent) -> None:
        self.changes += 1

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        authorized: bool | None = True,
        caller: tuple[str, int] = ("10.0.0.7", 40000),
    ) -> httpx.Response:
        return asyncio.run(self.request(method, path, body, authorized=authorized, caller=caller))

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        authorized: bool | None = True,
        caller: tuple[str, int] = ("10.0.0.7", 40000),
    ) -> httpx.Response:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if authorized is not None:
                scope[CALLER] = Caller("client", authorized=authorized)
            await self.control.app(scope, receive, send)

        transport = httpx.ASGITransport(app, client=caller)
        async with httpx.AsyncClient(transport=transport, base_url="http://balancer") as client:
            content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            return await client.request(method, path, content=content)


@pytest.fixture
def api() -> Api:
    return Api()


# Who may call


@pytest.mark.parametrize(("method", "path"), CHANGING_CALLS)
@pytest.mark.parametrize("authorized", [False, None])
def test_a_changing_call_without_the_token_is_refused_and_changes_nothing(
    api: Api, method: str, path: str, authorized: bool | None
) -> None:
    fleet(api.registry, "a")
    before = api.call("GET", "/api/agents").json()
    answer = api.call(method, path, {"name": "b"} | METRICS, authorized=authorized)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "Authorization: Bearer TOKEN" in answer.json()["error"]
    assert api.call("GET", "/api/agents").json() == before


def test_the_token_is_asked_for_before_it_is_told_whether_an_agent_exists(api: Api) -> None:
    assert api.call("POST", "/api/agents/nobody/metrics", METRICS, authorized=False).status_code == 401


@pytest.mark.parametrize("path", ["/api/agents", "/api/agents/a", "/api/balancer", "/health"])
def test_reading_calls_are_open(api: Api, path: str) -> None:
    fleet(api.registry, "a")
    assert api.call("GET", path, authorized=False).status_code == 200
    head = api.call("HEAD", path, authorized=None)
    assert (head.status_code, head.content) == (200, b"")


# Registration


def test_a_second_host_of_a_name_is_refused_as_long_as_the_first_one_reports(api: Api) -> None:
    first, second = {"name": "gpu", "instance": "one"}, {"name": "gpu", "instance": "two"}
    near, far = ("10.0.0.7", 40000), ("10.0.0.8", 40000)
    assert api.call("POST", "/api/agents", first, caller=near).status_code == 201
    assert api.call("POST", "/api/agents", second, caller=far).status_code == 200, "the first has not reported yet"
    assert api.call("POST", "/api/agents/gpu/metrics", METRICS).status_code == 204
    refused = api.call("POST", "/api/agents", first, caller=near)
    assert refused.status_code == 409
    assert "another host reports as gpu (http://10.0.0.8:11434): give this one a different name" in refused.text
    assert api.call("GET", "/api/agents/gpu").json()["url"] == "http://10.0.0.8:11434"
    # The same reporter with a new address, and a new one at the same address.
    assert api.call("POST", "/api/agents", second, caller=near).status_code == 200
    third = {"name": "gpu", "instance": "three"}
    assert api.call("POST", "/api/agents", third, caller=near).status_code == 200
    # That one holds the name no more than a program that says nothing of itself.
    for other in (third, {"name": "gpu"}, {"name": "gpu", "url": "http://evil.example"}):
        assert api.call("POST", "/api/agents", other, caller=far).status_code == 409
    assert api.call("GET", "/api/agents/gpu").json()["url"] == "http://10.0.0.7:11434"
    assert api.call("POST", "/api/agents", second, caller=far).status_code == 200


def test_an_agent_that_was_registered_without_an_instance_moves_when_it_is_silent(api: Api) -> None:
    near, far = ("10.0.0.7", 40000), ("10.0.0.8", 40000)
    assert api.call("POST", "/api/agents", {"name": "gpu"}, caller=near).status_code == 201
    assert api.call("POST", "/api/agents/gpu/metrics", METRICS).status_code == 204
    assert api.call("POST", "/api/agents", {"name": "gpu"}, caller=near).status_code == 200
    refused = api.call("POST", "/api/agents", {"name": "gpu"}, caller=far)
    assert refused.status_code == 409
    assert "30.0 s after the last report" in refused.text
    api.clock.now += 31
    assert api.call("POST", "/api/agents", {"name": "gpu"}, caller=far).json()["url"] == "http://10.0.0.8:11434"


@pytest.mark.parametrize("source", [Source.STATIC, Source.DEMO, Source.LOCAL])
def test_a_registration_does_not_move_an_agent_that_is_configured(api: Api, source: Source) -> None:
    agent, _ = api.registry.register("static", Address("10.0.0.1", 11434), source)
    refused = api.call("POST", "/api/agents", {"name": "static", "url": "http://evil"})
    assert refused.status_code == 409
    assert "--advertise http://10.0.0.1:11434" in refused.text
    assert api.call("POST", "/api/agents", {"name": "static"}).status_code == 409
    assert agent.address.url == "http://10.0.0.1:11434"
    same = api.call("POST", "/api/agents", {"name": "static", "url": "http://10.0.0.1:11434", "instance": "one"})
    assert same.status_code == 200
    assert agent.source is source


def test_the_reporter_of_a_host_that_is_configured_by_its_name_is_let_in(api: Api) -> None:
    agent, _ = api.registry.register("gpu", Address("gpu.lan", 11434), Source.STATIC)
    api.registry.located(agent, ("10.0.0.7", 11434))
    answer = api.call("POST", "/api/agents", {"name": "gpu"}, caller=("10.0.0.7", 40000))
    assert (answer.status_code, answer.json()["url"]) == (200, "http://gpu.lan:11434")
    assert api.call("POST", "/api/agents", {"name": "gpu"}, caller=("10.0.0.8", 40000)).status_code == 409


@pytest.mark.parametrize(
    ("time", "ahead"), [("9999-12-31T23:59:59Z", "251661513538 s"), ("2025-03-01T01:02:02+01:00", "61 s")]
)
def test_a_report_of_the_future_is_refused_with_the_difference(api: Api, time: str, ahead: str) -> None:
    api.control.wall = datetime(2025, 3, 1, 0, 1, 1, tzinfo=UTC).timestamp
    fleet(api.registry, "a")
    refused = api.call("POST", "/api/agents/a/metrics", METRICS | {"timestamp": time})
    assert refused.status_code == 400
    assert refused.json()["error"].startswith(f"timestamp: {ahead} ahead of the balancer's clock")
    for fine in ("2025-03-01T00:01:01Z", "2025-03-01T00:02:01Z"):
        assert api.call("POST", "/api/agents/a/metrics", METRICS | {"timestamp": fine}).status_code == 204
    agent = api.registry.get("a")
    assert agent
    assert agent.metrics
    assert agent.metrics.timestamp == datetime(2025, 3, 1, 0, 2, 1, tzinfo=UTC)


@pytest.mark.parametrize("how", ["silent", "stopped"])
def test_a_name_is_free_again_when_its_host_is_silent_or_was_stopped(api: Api, how: str) -> None:
    near, far = ("10.0.0.7", 40000), ("10.0.0.8", 40000)
    api.call("POST", "/api/agents", {"name": "gpu", "instance": "one"}, caller=near)
    api.call("POST", "/api/agents/gpu/metrics", METRICS)
    if how == "silent":
        api.clock.now += 31
    else:
        api.call("POST", "/api/agents/gpu/drain", {"until": "registration"})
    answer = api.call("POST", "/api/agents", {"name": "gpu", "instance": "two"}, caller=far)
    assert (answer.status_code, answer.json()["url"]) == (200, "http://10.0.0.8:11434")


def test_a_new_agent_is_201_and_a_known_one_200_with_the_same_id(api: Api) -> None:
    body = {"name": "gpu-1", "url": "http://10.0.0.1:8000"}
    first, second = api.call("POST", "/api/agents", body), api.call("POST", "/api/agents", body)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json() == {"id": agent_id("gpu-1"), **body}
    assert Api().call("POST", "/api/agents", body).json()["id"] == first.json()["id"]
    assert api.changes == 2
    agent = api.registry.get("gpu-1")
    assert agent
    assert agent.source is Source.REGISTERED


@pytest.mark.parametrize(
    ("caller", "more", "url"),
    [
        ("10.0.0.7", {}, "http://10.0.0.7:11434"),
        ("10.0.0.7", {"port": 8000}, "http://10.0.0.7:8000"),
        ("::ffff:10.0.0.7", {}, "http://10.0.0.7:11434"),
        ("2001:db8::7", {}, "http://[2001:db8::7]:11434"),
    ],
)
def test_without_a_url_the_agent_is_at_the_callers_address(
    api: Api, caller: str, more: dict[str, Any], url: str
) -> None:
    answer = api.call("POST", "/api/agents", {"name": "a"} | more, caller=(caller, 40000))
    assert answer.json()["url"] == url


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        ([], "body"),
        ({}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": 5}, "name"),
        ({"name": "a", "url": "https://10.0.0.1"}, "url"),
        ({"name": "a", "url": "http://10.0.0.1/api"}, "url"),
        ({"name": "a", "url": 5}, "url"),
        ({"name": "a", "port": 0}, "port"),
    ],
)
def test_a_bad_registration_is_400_and_names_the_field(api: Api, body: Any, field: str) -> None:
    answer = api.call("POST", "/api/agents", body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"{field}: ")
    assert (len(api.registry), api.changes) == (0, 0)


def test_a_name_that_is_another_agents_id_is_400(api: Api) -> None:
    fleet(api.registry, "a")
    answer = api.call("POST", "/api/agents", {"name": agent_id("a")})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("name ")


# Reading


def test_agents_are_listed_and_shown_by_id_and_by_name(api: Api) -> None:
    a, b = fleet(api.registry, "a", "b")
    listed = api.call("GET", "/api/agents").json()["agents"]
    assert listed == [describe_agent(each, api.clock.now) | {"notice": None} for each in (a, b)]
    shown = listed[1] | {"learned": {}}
    assert api.call("GET", "/api/agents/b").json() == api.call("GET", f"/api/agents/{b.id}").json() == shown


def test_an_agent_shows_why_its_last_request_went_there_and_what_was_learned_of_it(api: Api) -> None:
    a, b = fleet(api.registry, "a", "b")
    api.registry.inventory.update_loaded(a, entries("m"))
    api.registry.inventory.update_loaded(b, [])
    demand = Demand("m:latest", tokens=800)
    choice = api.registry.selection.choose(demand)
    assert choice.agent is a
    lease = api.registry.limiter.take(a, demand.model, demand, choice.options)
    shown = api.call("GET", "/api/agents").json()["agents"][0]
    assert shown["running"] == {"m:latest": 1}
    assert shown["decision"]["model"] == "m:latest"
    best, other = shown["decision"]["options"]
    assert (best["agent"], best["load"], best["free"], best["observations"]) == ("a", 0, True, 0)
    assert best["cost"] == best["wait"] + best["load"] + best["prefill"] + best["answer"] + best["harm"] == 2.5
    assert (other["agent"], other["load"]) == ("b", 22.5)
    api.clock.now += 4
    lease.began()
    api.registry.limiter.answered(lease, AnswerObservation(800, 0.5, 100, 2.5, 6.0))
    lease.release()
    shown = api.call("GET", "/api/agents/a").json()
    assert shown["decision"]["age"] == 4
    assert shown["learned"] == {
        "m:latest": {
            "decode": {"value": 40, "observations": 1},
            "prefill": {"value": 1600, "observations": 1},
            "load": {"value": 6, "observations": 1},
            "output": {"value": 100, "observations": 1},
        }
    }


def test_an_empty_fleet_is_an_empty_list(api: Api) -> None:
    assert api.call("GET", "/api/agents").json() == {"agents": []}


def test_a_listed_agent_that_has_been_silent_is_shown_offline(api: Api) -> None:
    fleet(api.registry, "a")
    api.clock.now += 15
    assert api.call("GET", "/api/agents").json()["agents"][0]["status"] == "offline"


def test_a_model_with_figures_that_are_no_json_can_be_shown(api: Api) -> None:
    fleet(api.registry, "a")
    body = json.dumps(METRICS | {"models": [{"name": "m", "size": "HERE"}]}).replace('"HERE"', "NaN").encode()
    assert api.call("POST", "/api/agents/a/metrics", body).status_code == 204
    assert api.call("GET", "/api/agents/a").json()["metrics"]["models"] == [{"name": "m", "size": None}]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/agents/nobody"),
        ("DELETE", "/api/agents/nobody"),
        ("POST", "/api/agents/nobody/metrics"),
        ("POST", "/api/agents/nobody/drain"),
        ("POST", "/api/agents/nobody/resume"),
    ],
)
def test_an_unknown_agent_is_404(api: Api, method: str, path: str) -> None:
    answer = api.call(method, path, METRICS)
    assert answer.status_code == 404
    assert "'nobody'" in answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["/api/agents/", "/api/agents/a/", "/api/agents/a/nope", "/api/agents/a/metrics/x", "/api/balancer/x"]
)
def test_an_unknown_path_is_404(api: Api, path: str) -> None:
    fleet(api.registry, "a")
    answer = api.call("GET", path)
    assert answer.status_code == 404
    assert answer.json() == {"error": f"{path}: the control API has no such path"}


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/api/agents", {"GET", "HEAD", "POST"}),
        ("DELETE", "/api/agents", {"GET", "HEAD", "POST"}),
        ("POST", "/api/agents/a", {"DELETE", "GET", "HEAD"}),
        ("GET", "/api/agents/a/metrics", {"POST"}),
        ("GET", "/api/agents/a/drain", {"POST"}),
        ("DELETE", "/api/agents/a/resume", {"POST"}),
        ("POST", "/api/balancer", {"GET", "HEAD"}),
        ("POST", "/health", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method_is_405_and_tells_the_right_ones(api: Api, method: str, path: str, allow: set[str]) -> None:
    fleet(api.registry, "a")
    answer = api.call(method, path)
    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) == allow
    assert method in answer.json()["error"]


# Deleting and draining


def test_a_deleted_agent_is_gone_and_its_requests_finish(api: Api) -> None:
    [agent] = fleet(api.registry, "a")
    lease = api.registry.limiter.take(agent)
    answer = api.call("DELETE", "/api/agents/a")
    assert (answer.status_code, answer.content) == (204, b"")
    assert api.call("GET", "/api/agents/a").status_code == 404
    assert lease.release()


def test_a_drained_agent_is_shown_draining_until_it_is_resumed(api: Api) -> None:
    [agent] = fleet(api.registry, "a")
    drained = api.call("POST", "/api/agents/a/drain")
    assert (drained.status_code, drained.json()["status"]) == (200, "draining")
    assert api.registry.selection.select() is None
    resumed = api.call("POST", f"/api/agents/{agent.id}/resume")
    assert (resumed.status_code, resumed.json()["status"]) == (200, "online")
    assert api.registry.selection.select() is agent


@pytest.mark.parametrize(
    ("body", "after"), [({"until": "registration"}, "online"), ({}, "draining"), (b"", "draining")]
)
def test_a_registration_ends_a_drain_only_where_that_was_asked_for(api: Api, body: Any, after: str) -> None:
    fleet(api.registry, "a")
    assert api.call("POST", "/api/agents/a/drain", body).status_code == 200
    api.call("POST", "/api/agents", {"name": "a", "url": address(1).url})
    assert api.call("GET", "/api/agents/a").json()["status"] == after


@pytest.mark.parametrize(("body", "field"), [({"until": "tomorrow"}, "until"), (b"{", "body"), ([], "body")])
def test_a_bad_drain_is_400_and_drains_nothing(api: Api, body: Any, field: str) -> None:
    fleet(api.registry, "a")
    answer = api.call("POST", "/api/agents/a/drain", body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"{field}: ")
    assert api.registry.selection.select() is not None


# Reports


def test_a_report_is_stored_before_it_is_answered_with_204(api: Api) -> None:
    [agent] = fleet(api.registry, "a")
    answer = api.call("POST", f"/api/agents/{agent.id}/metrics", METRICS | {"agent_id": "someone else"})
    assert (answer.status_code, answer.content) == (204, b"")
    shown = api.call("GET", "/api/agents/a").json()
    assert (shown["score"], shown["stale"], shown["metrics_age"]) == (40, False, 0)
    assert shown["metrics"]["active_requests"] == 1


def test_a_late_report_is_204_and_not_stored(api: Api) -> None:
    fleet(api.registry, "a")
    api.registry.update_metrics("a", report(50, 20, at=60))
    assert api.call("POST", "/api/agents/a/metrics", METRICS).status_code == 204
    assert api.call("GET", "/api/agents/a").json()["score"] == 70


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"\xff", "body"),
        ([], "body"),
        (METRICS | {"cpu_usage": 101}, "cpu_usage"),
        (METRICS | {"cpu_usage": "10"}, "cpu_usage"),
        (METRICS | {"active_requests": -1}, "active_requests"),
        (METRICS | {"timestamp": "2026-01-31T12:00:00"}, "timestamp"),
        (METRICS | {"models": [{"name": "m"}, {}]}, "models.1.name"),
        ({name: value for name, value in METRICS.items() if name != "memory_usage"}, "memory_usage"),
        (json.dumps(METRICS).replace("20", "NaN").encode(), "memory_usage"),
    ],
)
def test_a_bad_report_is_400_and_names_the_field_and_changes_nothing(api: Api, body: Any, field: str) -> None:
    fleet(api.registry, "a")
    before = api.call("GET", "/api/agents/a").json()
    answer = api.call("POST", "/api/agents/a/metrics", body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"{field}: ")
    assert api.call("GET", "/api/agents/a").json() == before


def test_a_bad_report_is_told_what_is_accepted(api: Api) -> None:
    fleet(api.registry, "a")
    answer = api.call("POST", "/api/agents/a/metrics", METRICS | {"timestamp": "2026-01-31T12:00:00"})
    says = "timestamp: must be an RFC 3339 time with a zone, such as 2026-01-31T12:00:00Z"
    assert answer.json() == {"error": says}


# The whole


def test_health_is_200_while_an_agent_can_serve(api: Api) -> None:
    assert api.call("GET", "/health").status_code == 503
    a, b, _ = fleet(api.registry, "a", "b", "c")
    api.registry.liveness.unreachable(a, "refused")
    api.registry.drain(b)
    healthy = api.call("GET", "/health")
    assert (healthy.status_code, healthy.json()["status"]) == (200, "ok")
    assert healthy.json()["agents"] == {
        "online": 1,
        "offline": 1,
        "unreachable": 0,
        "unauthorized": 0,
        "ejected": 0,
        "draining": 1,
    }
    api.registry.drain(api.registry.get("c") or a)
    ill = api.call("GET", "/health")
    assert (ill.status_code, ill.json()["agents"]["online"]) == (503, 0)


def test_the_balancer_tells_its_mode_uptime_and_totals(api: Api) -> None:
    a, b = fleet(api.registry, "a", "b")
    api.registry.limiter.take(b)
    for outcome, count in (("succeeded", 4), ("failed", 1), ("cancelled", 2), ("rejected", 3), ("refused", 1)):
        for _ in range(count):
            api.request_metrics.add(RequestSummary(a.name, "m:latest", "/api/chat", outcome, 0.1))
    api.registry.remove(a)
    fleet(api.registry, "c")
    api.registry.mode = "least_requests"
    api.clock.now += 5.5
    assert api.call("GET", "/api/balancer").json() == {
        "mode": "least_requests",
        "access": {"needs_key": False, "keys": 0},
        "uptime": 5.5,
        "totals": {
            "requests": 12,
            "succeeded": 4,
            "failed": 1,
            "cancelled": 2,
            "rejected": 3,
            "refused": 1,
            "in_flight": 1,
        },
        "waiting": 0,
        "line": {
            "length": 0,
            "oldest": None,
            "priorities": {"interactive": 0, "normal": 0, "batch": 0},
            "models": {},
            "clients": {},
        },
        "agents": {
            "online": 2,
            "offline": 0,
            "unreachable": 0,
            "unauthorized": 0,
            "ejected": 0,
            "draining": 0,
        },
    }


@pytest.mark.parametrize("path", ["/api/agents", "/api/agents/a", "/api/agents/a/metrics", "/api/balancer", "/health"])
def test_control_paths_are_served_here(path: str) -> None:
    assert is_control_path(path)


@pytest.mark.parametrize("path", ["/", "/api/tags", "/api/agentsx", "/api", "/healthy", "/api/balancers", ""])
def test_other_paths_are_not(path: str) -> None:
    assert not is_control_path(path)


def test_reports_bring_models_that_are_then_listed(api: Api) -> None:
    fleet(api.registry, "a")
    models = [entry.model_dump() for entry in entries("x:1b", "y:2b")]
    api.call("POST", "/api/agents/a/metrics", METRICS | {"models": models, "loaded_models": models[:1]})
    shown = api.call("GET", "/api/agents/a").json()
    assert (shown["models"], shown["loaded_models"]) == (["x:1b", "y:2b"], ["x:1b"])


class TestHistory:
    def over(self, agent: str, model: str) -> RequestSummary:
        return RequestSummary(
            agent, model, "/api/chat", "succeeded", 2.5, first_token=0.25, prompt_tokens=3, output_tokens=7
        )

    def test_the_last_hours_minutes_are_told_by_agent_and_model(self) -> None:
        api = Api()
        for agent, model in (("a", "m:latest"), ("b", "m:latest"), ("", "")):
            api.history.add(self.over(agent, model))
        api.wall += 3600
        api.history.add(self.over("a", "n:latest"))
        [minute] = api.call("GET", "/api/history").json()["minutes"]
        assert minute == {
            "at": "2023-11-14T23:13:00Z",
            "rows": [
                {
                    "agent": "a",
                    "model": "n:latest",
                    "requests": 1,
                    "succeeded": 1,
                    "failed": 0,
                    "cancelled": 0,
                    "refused": 0,
                    "prompt_tokens": 3,
                    "output_tokens": 7,
                    "seconds": 2.5,
                    "waited": 0.0,
                    "first_tokens": 1,
                    "first_token_seconds": 0.25,
                    "rejected": 0,
                }
            ],
        }
        older, _ = api.call("GET", "/api/history?minutes=61").json()["minutes"]
        assert [(row["agent"], row["model"]) for row in older["rows"]] == [
            ("a", "m:latest"),
            ("b", "m:latest"),
            (None, None),
        ]
        [older, _] = api.call("GET", "/api/history?minutes=1440&agent=a&model=m:latest").json()["minutes"]
        assert [row["agent"] for row in older["rows"]] == ["a"]

    @pytest.mark.parametrize("choice", ["", "&model=m:latest"])
    @pytest.mark.chaos
    def test_a_whole_day_of_a_large_fleet_comes_in_pages(self, choice: str) -> None:
        api = Api()
        for _ in range(24):
            for number in range(1000):
                api.history.add(self.over(f"agent-{number}", "m:latest"))
            api.wall += 3600
        api.history.add(self.over("last", "m:latest"))
        path: str | None = f"/api/history?minutes=1440{choice}"
        times, sizes, rows = [], [], 0
        while path is not None:
            answer = api.call("GET", path)
            assert answer.status_code == 200, answer.text
            sizes.append(len(answer.content))
            page = answer.json()
            times += [minute["at"] for minute in page["minutes"]]
            rows += sum(len(minute["rows"]) for minute in page["minutes"])
            path = page["next"]
        assert len(sizes) == 5
        assert max(sizes) < 1_500_000
        assert times == sorted(set(times))
        assert rows == 23 * 1000 + 1

    @pytest.mark.chaos
    def test_others_get_turns_while_rows_are_read_that_are_not_wanted(self) -> None:
        api = Api()
        for _ in range(24):
            for number in range(1000):
                api.history.add(self.over(f"agent-{number}", "m:latest"))
            api.wall += 3600

        async def turns_beside(path: str) -> int:
            asking = asyncio.create_task(api.request("GET", path))
            turns = 0
            while not asking.done():
                turns += 1
                await asyncio.sleep(0)
            assert not any(minute["rows"] for minute in asking.result().json()["minutes"])
            return turns

        usual = asyncio.run(turns_beside("/api/history?minutes=1&agent=nobody"))
        assert asyncio.run(turns_beside("/api/history?minutes=1440&agent=nobody")) >= usual + 20

    def test_a_minute_of_more_rows_than_a_page_is_told_whole_and_the_next_page_goes_on(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(history, "ROWS_IN_PAGE", 2)
        api = Api()
        for count in (3, 1, 1, 5):
            for number in range(count):
                api.history.add(self.over(f"agent-{number}", "m:latest"))
            api.wall += 60
        path: str | None = "/api/history"
        pages = []
        while path is not None:
            page = api.call("GET", path).json()
            pages.append([len(minute["rows"]) for minute in page["minutes"]])
            path = page["next"]
        assert pages == [[3], [1, 1], [5]]

    @pytest.mark.parametrize(
        ("after", "found"),
        [
            ("2023-11-14T22:13:00Z", 0),
            ("2023-11-14T22:12:59.5Z", 1),
            ("2023-11-15T00:12:00%2B02:00", 1),
            ("2023-11-15T00:13:00%2B02:00", 0),
            ("0001-01-01T00:00:00%2B14:00", 1),
        ],
    )
    def test_a_page_begins_after_any_time_with_a_zone(self, after: str, found: int) -> None:
        api = Api()
        api.history.add(self.over("a", "m:latest"))
        assert len(api.call("GET", f"/api/history?after={after}").json()["minutes"]) == found

    @pytest.mark.parametrize("after", ["0", "x", "", "2023-11-14", "2023-11-14T25:13:00Z", "9" * 400])
    def test_a_page_that_begins_nowhere_is_refused(self, after: str) -> None:
        answer = Api().call("GET", f"/api/history?after={after}")
        assert answer.status_code == 400
        assert "after: " in answer.json()["error"]

    @pytest.mark.parametrize("minutes", ["0", "1441", "-1", "x", "", "1.5", "9" * 400])
    def test_a_time_that_is_not_kept_is_refused(self, minutes: str) -> None:
        answer = Api().call("GET", f"/api/history?minutes={minutes}")
        assert answer.status_code == 400
        assert "whole number from 1 to 1440" in answer.json()["error"]
