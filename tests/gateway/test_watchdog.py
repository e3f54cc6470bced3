from __future__ import annotations

import asyncio

import pytest

from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.gateway.callers import Caller
from ollama_balancer.gateway.context import RequestContext
from ollama_balancer.gateway.timeouts import OFFLINE_SILENCE
from ollama_balancer.gateway.watchdog import (
    RECHECK_SECONDS,
    SILENCE,
    UNSTREAMED_PATIENCE,
    WORST_PREFILL,
    Watchdog,
)
from ollama_balancer.ollama.routes import Dialect, find_route
from tests.core.fakes import Clock, entries, fleet, new_registry

M = "m:latest"


class Scene:
    """One agent, which says what it has in memory, and what the watchdog gives up."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.registry = new_registry(self.clock)
        self.agent: Agent = fleet(self.registry, "a")[0]
        self.in_memory: set[str] | None = {M}
        self.given_up: list[tuple[RequestContext, str]] = []
        self.contexts: list[RequestContext] = []
        self.slow_clients: list[RequestContext] = []
        self.dog = Watchdog(
            self.clock,
            self._loaded,
            lambda context, why: self.given_up.append((context, why)),
            self.slow_clients.__contains__,
        )

    async def _loaded(self, agent: Agent) -> set[str] | None:
        return self.in_memory

    def send(self, *, streams: bool = True, body: int = 0, model: str | None = M) -> RequestContext:
        context = RequestContext(Caller("client"), Dialect.OLLAMA, self.clock)
        context.streams, context.body_bytes = streams, body
        context.take(self.registry.limiter.take(self.agent, model))
        self.contexts.append(context)
        return context

    def look(self, seconds: float = 0.0) -> list[RequestContext]:
        """Let time pass, and ask after those that are suspicious."""
        self.clock.now += seconds
        self.registry.liveness.reached(self.agent)
        suspicious = self.dog.check(self.contexts)
        for context in suspicious:
            asyncio.run(self.dog.judge(context))
        return suspicious


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def warm(scene: Scene) -> Scene:
    scene.registry.inventory.update_loaded(scene.agent, entries("m"))
    return scene


def test_silence_with_the_model_in_memory_is_a_failure(warm: Scene) -> None:
    context = warm.send()
    assert warm.look(SILENCE - 0.1) == []
    assert warm.look(0.1) == [context]
    assert warm.given_up == [(context, "no data for 30 s although the model is loaded")]


def test_a_long_prompt_has_the_time_that_reading_it_may_take(warm: Scene) -> None:
    context = warm.send(body=4000)
    assert warm.look(SILENCE + 4000 / WORST_PREFILL - 0.1) == []
    assert warm.look(0.1) == [context]


def test_an_agent_that_gets_on_with_others_is_not_silent(warm: Scene) -> None:
    context = warm.send()
    for _ in range(10):
        warm.agent.heard_at = warm.clock.now
        assert warm.look(SILENCE - 0.1) == []
    assert warm.look(0.2) == [context]


def test_an_answer_in_one_piece_may_take_longer(warm: Scene) -> None:
    streamed, whole = warm.send(), warm.send(streams=False)
    assert warm.look(SILENCE * UNSTREAMED_PATIENCE - 0.1) == []
    assert warm.look(0.1) == [streamed, whole]


def test_a_load_is_left_alone_however_long_it_takes_and_then_the_prompt_has_its_time(scene: Scene) -> None:
    context = scene.send()
    scene.in_memory = set()
    for _ in range(100):
        assert scene.look(SILENCE) == [context]
    scene.in_memory = {M}
    assert scene.look(RECHECK_SECONDS - 0.1) == []
    assert scene.look(0.1) == [context]
    assert scene.given_up == [], "it was not seen in memory before"
    assert scene.look(SILENCE - 0.1) == []
    assert scene.look(0.1) == [context]
    assert len(scene.given_up) == 1


def test_a_host_that_is_too_busy_loading_to_answer_is_left_alone_while_it_is_online(scene: Scene) -> None:
    context = scene.send()
    scene.in_memory = None
    scene.look(SILENCE)
    assert scene.given_up == []
    scene.registry.liveness.unreachable(scene.agent, "gone")
    scene.clock.now += SILENCE
    assert scene.dog.check(scene.contexts) == [context]
    asyncio.run(scene.dog.judge(context))
    assert scene.given_up == [(context, "no data for 60 s, and its list of loaded models cannot be read")]


def test_a_host_with_the_model_in_memory_that_says_nothing_at_all_is_given_up(warm: Scene) -> None:
    context = warm.send()
    warm.in_memory = None
    warm.look(SILENCE)
    assert [given for given, _ in warm.given_up] == [context]


def test_what_an_offline_agent_has_not_begun_is_given_up_at_once(warm: Scene) -> None:
    context = warm.send()
    warm.registry.liveness.unreachable(warm.agent, "no answer to probes")
    assert warm.dog.check(warm.contexts) == []
    assert warm.given_up == [(context, "it went offline: no answer to probes")]


def test_before_its_answer_a_request_for_no_model_fails_with_its_agent_alone(warm: Scene) -> None:
    ended, show = warm.send(), warm.send(model=None)
    ended.end(Outcome.SUCCEEDED)
    assert warm.look(10 * SILENCE) == []
    warm.registry.liveness.unreachable(warm.agent, "gone")
    assert warm.dog.check(warm.contexts) == []
    assert warm.given_up == [(show, "it went offline: gone")]


def answering(scene: Scene, route: str = "/api/chat") -> RequestContext:
    context = scene.send()
    context.route = find_route(route)
    context.first_byte = scene.clock.now
    context.note_activity()
    return context


def test_an_answer_that_is_silent_for_long_has_failed_though_its_agent_is_online(warm: Scene) -> None:
    context = answering(warm)
    warm.look(warm.dog.idle_seconds - 0.1)
    context.note_activity()
    warm.look(warm.dog.idle_seconds - 0.1)
    assert warm.given_up == []
    warm.look(0.2)
    assert warm.given_up == [(context, "no data for 120 s")]


def test_an_answer_of_an_agent_that_is_offline_fails_unless_it_goes_on(warm: Scene) -> None:
    context = answering(warm)
    warm.registry.liveness.unreachable(warm.agent, "gone")
    for _ in range(10):
        warm.clock.now += OFFLINE_SILENCE - 0.1
        warm.dog.check(warm.contexts)
        context.note_activity()
    assert warm.given_up == []
    warm.clock.now += OFFLINE_SILENCE
    warm.dog.check(warm.contexts)
    assert warm.given_up == [(context, "it went offline: gone")]


def test_a_pull_may_be_silent_for_as_long_as_a_first_byte(warm: Scene) -> None:
    context = answering(warm, "/api/push")
    warm.look(warm.dog.response_seconds - 0.1)
    assert warm.given_up == []
    warm.look(0.2)
    assert [given for given, _ in warm.given_up] == [context]


def test_a_client_that_does_not_take_its_answer_is_no_failure_of_the_agent(warm: Scene) -> None:
    context = answering(warm)
    warm.slow_clients.append(context)
    warm.look(2 * warm.dog.idle_seconds)
    warm.registry.liveness.unreachable(warm.agent, "gone")
    warm.dog.check(warm.contexts)
    assert warm.given_up == []
    warm.slow_clients.clear()
    warm.clock.now += OFFLINE_SILENCE
    warm.dog.check(warm.contexts)
    assert [given for given, _ in warm.given_up] == [context]


def test_an_answer_that_comes_while_the_agent_is_asked_is_no_silence(warm: Scene) -> None:
    context = warm.send()

    async def loaded(agent: Agent) -> set[str] | None:
        context.first_byte = warm.clock.now
        return {M}

    dog = Watchdog(warm.clock, loaded, lambda context, why: warm.given_up.append((context, why)))
    warm.clock.now += SILENCE
    asyncio.run(dog.judge(context))
    assert warm.given_up == []
