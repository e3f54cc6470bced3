"""Agents that are left alone: for what they cannot do, while they are busy, and where they let nobody in."""

from __future__ import annotations

import pytest

from agent_reporter.wire import ModelEntry
from ollama_balancer.core.agent import Agent, Status
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.avoidance import FAILING_SECONDS, MAX_KINDS, REFUSED_SECONDS, SECONDS, Avoidance
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.policies import POLICIES
from ollama_balancer.core.queue import RequestQueue
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.core.scheduler import Scheduler
from ollama_balancer.core.tickets import QueueKey
from tests.core.fakes import Clock, fleet, new_registry

M = "m:latest"
LARGE = Demand(M, "num_ctx=131072")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> AgentRegistry:
    return new_registry(clock, slots=4)


def found(scheduler: Scheduler, demand: Demand, times: int = 8) -> set[Agent | None]:
    return {scheduler.find(demand).agent for _ in range(times)}


def of(avoidance: Avoidance, demand: Demand) -> set[Agent]:
    return set(avoidance.for_demand(demand))


def test_who_cannot_load_a_model_is_avoided_for_it_with_those_options_for_a_while(
    clock: Clock, registry: AgentRegistry
) -> None:
    a, b = fleet(registry, "a", "b")
    avoidance = registry.avoidance
    avoidance.cannot_load(a, M, LARGE.runner)
    assert of(avoidance, LARGE) == {a}
    assert of(avoidance, Demand(M)) == of(avoidance, Demand("n:latest", LARGE.runner)) == set()
    clock.now += SECONDS - 0.001
    avoidance.cannot_load(b, M, LARGE.runner)
    assert of(avoidance, LARGE) == {a, b}
    clock.now += 0.001
    assert of(avoidance, LARGE) == {b}
    clock.now += SECONDS
    assert of(avoidance, LARGE) == set()
    assert len(avoidance) == 0


def test_another_version_or_another_file_is_another_matter(registry: AgentRegistry) -> None:
    a, b = fleet(registry, "a", "b")
    avoidance = registry.avoidance
    for agent in (a, b):
        registry.inventory.update_models(agent, [ModelEntry.model_validate({"name": "m", "digest": "1"})])
        registry.inventory.update_version(agent, "0.30.0")
        avoidance.cannot_load(agent, M, "")
        avoidance.lacks_route(agent, "/v1/messages")
    registry.inventory.update_models(a, [ModelEntry.model_validate({"name": "m", "digest": "2"})])
    assert of(avoidance, Demand(M)) == {b}
    assert set(avoidance.for_route("/v1/messages")) == {a, b}
    registry.inventory.update_version(b, "0.33.0")
    assert of(avoidance, Demand(M)) == set()
    assert set(avoidance.for_route("/v1/messages")) == {a}
    assert of(avoidance, Demand(M, route="/v1/messages")) == {a}


def test_who_has_served_it_or_has_gone_is_avoided_no_more(registry: AgentRegistry) -> None:
    a, b, c = fleet(registry, "a", "b", "c")
    for agent in (a, b, c):
        registry.avoidance.cannot_load(agent, M, LARGE.runner)
    lease = registry.limiter.take(a, M, LARGE)
    registry.ejection.succeeded(lease)
    lease.release()
    assert of(registry.avoidance, LARGE) == {b, c}
    registry.liveness.unreachable(b, "connection refused")
    registry.liveness.reached(b)
    registry.remove(c)
    assert len(registry.avoidance) == 0


def test_what_clients_make_up_is_not_remembered_for_ever(registry: AgentRegistry) -> None:
    [a] = fleet(registry, "a")
    for number in range(2 * MAX_KINDS):
        registry.avoidance.cannot_load(a, M, f"num_ctx={number}")
    assert len(registry.avoidance) == MAX_KINDS
    assert of(registry.avoidance, Demand(M, f"num_ctx={2 * MAX_KINDS - 1}")) == {a}
    assert of(registry.avoidance, Demand(M, "num_ctx=0")) == set()


def test_nothing_is_kept_of_an_agent_that_was_removed_nor_of_what_is_over(
    clock: Clock, registry: AgentRegistry
) -> None:
    a, b = fleet(registry, "a", "b")
    avoidance = registry.avoidance
    avoidance.cannot_load(a, M, "x")
    registry.remove(a)
    avoidance.cannot_load(a, M, "y")
    assert len(avoidance) == 0
    for number in range(3):
        avoidance.cannot_load(b, M, str(number))
    clock.now += SECONDS
    avoidance.cannot_load(b, M, "new")
    assert len(avoidance) == 1


@pytest.mark.parametrize("mode", POLICIES)
def test_others_get_such_requests_and_wait_for_each_other_before_they_go_there(
    registry: AgentRegistry, mode: str
) -> None:
    registry.mode = mode
    scheduler = Scheduler(registry, RequestQueue(registry.clock))
    a, b = fleet(registry, "a", "b")
    registry.avoidance.cannot_load(a, M, LARGE.runner)
    assert found(scheduler, LARGE) == {b}
    assert found(scheduler, Demand(M)) >= {a}
    running = [registry.limiter.take(b, M, LARGE) for _ in range(4)]
    assert found(scheduler, LARGE) == {None}
    got = list[Lease | None]()
    scheduler.join(QueueKey(M), "client", got.append, LARGE)
    assert got == []
    running.pop().release()
    assert [lease.agent for lease in got if lease is not None] == [b]
    # With nobody else, it is asked all the same.
    registry.drain(b)
    assert found(scheduler, LARGE) == {a}


@pytest.mark.parametrize("mode", POLICIES)
def test_a_failing_agent_that_cannot_be_spared_is_asked_once_in_a_while(
    clock: Clock, registry: AgentRegistry, mode: str
) -> None:
    registry.mode = mode
    scheduler = Scheduler(registry, RequestQueue(registry.clock))
    a, b, c = fleet(registry, "a", "b", "c")

    def fail(agent: Agent) -> None:
        lease = registry.limiter.take(agent, M)
        registry.ejection.failed(lease, "reset")
        lease.release(Outcome.FAILED)

    for agent in (a, a, a, b, b):
        fail(agent)
    assert found(scheduler, Demand(M)) == {b, c}
    fail(b)
    assert (a.status, b.status) == (Status.EJECTED, Status.ONLINE)
    assert found(scheduler, Demand(M)) == {c}
    registry.drain(a)
    clock.now += FAILING_SECONDS
    for agent in (b, c):
        registry.liveness.reached(agent)
    assert b in found(scheduler, Demand(M))
    fail(b)
    assert found(scheduler, Demand(M)) == {c}
    lease = registry.limiter.take(b, M)
    registry.ejection.succeeded(lease)
    lease.release()
    assert found(scheduler, Demand(M)) == {b, c}


@pytest.mark.parametrize("mode", POLICIES)
def test_who_is_busy_gets_no_request_of_that_model_until_then_and_those_who_wait_get_it(
    clock: Clock, registry: AgentRegistry, mode: str
) -> None:
    registry.mode = mode
    scheduler = Scheduler(registry, RequestQueue(registry.clock))
    [a] = fleet(registry, "a")
    refused = registry.limiter.take(a, M)
    registry.limiter.busy(a, M, 5.0)
    refused.release(Outcome.FAILED)
    assert found(scheduler, Demand(M)) == {None}
    assert not registry.selection.has_free_slot(a, M)
    assert registry.selection.has_free_slot(a, "n:latest")
    assert (a.status, a.health.consecutive_failures) == (Status.ONLINE, 0)
    got = list[Lease | None]()
    scheduler.join(QueueKey(M), "client", got.append, Demand(M))
    clock.now += 4.0
    registry.limiter.busy(a, M, 0.5)  # another that was under way: the longer time counts
    clock.now += 0.999
    scheduler.look()
    registry.expire()
    assert got == []
    registry.liveness.reached(a)
    clock.now += 0.001
    registry.expire()
    assert [lease.agent for lease in got if lease is not None] == [a]
    assert found(scheduler, Demand(M)) == {a}


def test_a_busy_agent_that_is_removed_leaves_nothing(clock: Clock, registry: AgentRegistry) -> None:
    a, b = fleet(registry, "a", "b")
    registry.limiter.busy(a, M, 5.0)
    registry.liveness.refuses(b, "status 401")
    registry.remove(a)
    registry.remove(b)
    registry.limiter.busy(a, M, 5.0)
    registry.liveness.refuses(b, "status 401")
    clock.now += 60
    registry.expire()
    assert not registry.limiter._busy
    assert not registry.liveness._refused


def test_who_lets_nobody_in_is_shown_so_and_not_used_for_a_while(clock: Clock, registry: AgentRegistry) -> None:
    scheduler = Scheduler(registry, RequestQueue(registry.clock))
    a, b = fleet(registry, "a", "b")
    got = list[Lease | None]()
    registry.liveness.refuses(a, "status 401: credentials are wanted")
    assert (a.status, a.reason, a.health.consecutive_failures) == (
        Status.UNAUTHORIZED,
        "status 401: credentials are wanted",
        0,
    )
    assert found(scheduler, Demand(M)) == {b}
    registry.liveness.refuses(b, "status 401")
    assert registry.counts() == {Status.UNAUTHORIZED: 2}
    assert not registry.selection.could_serve(M)
    scheduler.join(QueueKey(M, a), "client", got.append, Demand(M))
    clock.now += 1
    registry.liveness.reached(a)
    scheduler.look()
    assert got == [None]  # nobody waits for who does not let the request in
    clock.now += REFUSED_SECONDS
    for agent in (a, b):
        registry.liveness.reached(agent)
    registry.expire()
    assert registry.counts() == {Status.ONLINE: 2}
    assert found(scheduler, Demand(M)) == {a, b}


def test_a_drained_agent_is_draining_whatever_it_answers_and_a_lost_one_offline(registry: AgentRegistry) -> None:
    a, b = fleet(registry, "a", "b")
    for agent in (a, b):
        registry.liveness.refuses(agent, "status 401")
    registry.drain(a)
    assert a.status is Status.DRAINING
    registry.liveness.unreachable(b, "connection refused")
    assert b.status is Status.OFFLINE


def test_an_attempt_at_the_wrong_agent_is_in_no_statistics(registry: AgentRegistry) -> None:
    [a] = fleet(registry, "a")
    registry.limiter.take(a, M).release(None)
    assert (a.in_flight, a.running) == (0, {})
    assert (a.stats.succeeded, a.stats.failed, a.stats.cancelled) == (0, 0, 0)
