"""What `test_without_mitmproxy` runs: a gateway with an adapter that only notes what it is told, and a fake clock."""

from __future__ import annotations

import asyncio
import json
import logging

from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.gateway.attempts import Failure
from ollama_balancer.gateway.callers import read_caller
from ollama_balancer.gateway.context import RequestContext
from ollama_balancer.gateway.decisions import Forward
from ollama_balancer.gateway.gateway import Gateway
from ollama_balancer.gateway.messages import AgentRequest, ClientRequest, Fields, Response
from ollama_balancer.gateway.refusals import blame_of
from ollama_balancer.ollama.names import canonical_name
from ollama_balancer.storage.token import Token
from tests.core.fakes import Clock, entries, fleet, report

CHAT = ClientRequest("POST", "/api/chat", json.dumps({"model": "m", "messages": []}).encode(), "application/json")
HEAD: Fields = ((b"Host", b"balancer:8080"), (b"Authorization", b"Bearer a-key"))


class NotingAdapter:
    def __init__(self) -> None:
        self.waiting_now = asyncio.Event()
        self.cuts: list[RequestContext] = []

    def request(self, context: RequestContext) -> ClientRequest:
        return CHAT

    def agent_request(self, context: RequestContext) -> AgentRequest:
        return AgentRequest("POST", "/api/pull", (), b"{}")

    def waiting(self, context: RequestContext) -> None:
        self.waiting_now.set()

    def is_killed(self, context: RequestContext) -> bool:
        return False

    def cut(self, context: RequestContext) -> None:
        self.cuts.append(context)

    def client_is_slow(self, context: RequestContext) -> bool:
        return False

    def read_client(self, context: RequestContext, on: bool) -> None:
        raise NotImplementedError

    async def drain_client(self, context: RequestContext) -> None:
        raise NotImplementedError


class Scene:
    """Two hosts with the model `m`, each with one slot."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.registry = AgentRegistry(self.clock, canonical_name=canonical_name)
        self.registry.slots = 1
        self.agents = fleet(self.registry, "a", "b")
        for agent in self.agents:
            self.registry.update_metrics(agent.name, report(models=entries("m")))
        self.adapter = NotingAdapter()
        self.ended: list[RequestContext] = []
        self.gateway = Gateway(self.registry, self.adapter)
        self.gateway.on_end = self.ended.append

    def arrived(self) -> RequestContext:
        caller, fields, target = read_caller(
            HEAD, b"/api/chat", Token("t" * 8), b"salt", client_id="c", address="10.0.0.7"
        )
        assert fields == HEAD[:1]
        context = self.gateway.arrived(caller, target.decode(), None)
        self.gateway.begin(context, None)
        return context


async def whole_request() -> None:
    scene = Scene()
    gateway, registry = scene.gateway, scene.registry
    first, second = scene.arrived(), scene.arrived()
    assert isinstance(await gateway.route(first), Forward)
    assert isinstance(await gateway.route(second), Forward)
    assert {first.agent, second.agent} == set(scene.agents)

    third = scene.arrived()
    routed = asyncio.create_task(gateway.route(third))
    await scene.adapter.waiting_now.wait()
    assert (len(gateway.router.line), third.agent) == (1, None)
    scene.clock.now += 3
    first.end(Outcome.SUCCEEDED)
    assert isinstance(await routed, Forward)
    assert (third.agent, third.waited) == (first.tried[0], 3.0)

    second.end(Outcome.SUCCEEDED)
    busy = Response(503, ((b"Retry-After", b"7"),), b'{"error":"server busy, please try again."}')
    third.failure = Failure("status 503", True, True, busy, blame_of(busy, third.route))
    assert isinstance(await gateway.route(third), Forward)
    assert [agent.name for agent in third.tried] == [first.tried[0].name, second.tried[0].name]

    third.failure = Failure("status 503", True, True, busy, blame_of(busy, third.route))
    answer = await gateway.route(third)
    assert isinstance(answer, Response)
    assert (answer.status, answer.header(b"retry-after")) == (503, "7")
    assert third.outcome is Outcome.FAILED
    assert scene.ended == [first, second, third]
    assert (registry.in_flight, len(gateway.live), len(gateway.deadlines)) == (0, 0, 0)


def main() -> None:
    logging.disable()
    asyncio.run(whole_request())
