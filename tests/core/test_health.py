from __future__ import annotations

import logging

import pytest

from agent_reporter.wire import AgentMetrics
from ollama_balancer.core.agent import Agent, Status
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.agent_view import describe_agent
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.health import (
    EJECTION_THRESHOLD,
    FIRST_EJECTION,
    LONGEST_EJECTION,
    SLOW_START_SECONDS,
    Health,
    Phase,
)
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.queue import RequestQueue
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.core.scheduler import Scheduler
from tests.core.fakes import Clock, entries, fleet, new_registry, report


def strike(health: Health, now: float, *, half_open: bool = False, may_eject: bool = True, chance: float = 0.5) -> bool:
    return health.failed(now, "it failed", chance=chance, half_open=half_open, may_eject=may_eject)


def ejected(now: float = 0.0) -> Health:
    health = Health()
    assert [strike(health, now) for _ in range(EJECTION_THRESHOLD)] == [False, False, True]
    return health


def test_strikes_in_a_row_eject() -> None:
    health = ejected(100)
    assert (health.phase, health.until, health.reason) == (Phase.EJECTED, 100 + FIRST_EJECTION, "it failed")


def test_a_success_clears_the_strikes() -> None:
    health = Health()
    for _ in range(10):
        strike(health, 0)
        strike(health, 0)
        assert not health.succeeded(0, half_open=False)
    assert health.phase is Phase.HEALTHY


def test_each_return_that_fails_doubles_the_ejection_up_to_the_longest() -> None:
    health = ejected()
    lengths = [health.until]
    for _ in range(8):
        now = health.until
        assert strike(health, now, half_open=True)
        lengths.append(health.until - now)
    assert lengths == [10, 20, 40, 80, 160, 300, 300, 300, 300]
    assert LONGEST_EJECTION == 300


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 9.0), (0.5, 10.0), (1.0, 11.0)])
def test_the_length_has_jitter(chance: float, seconds: float) -> None:
    health = Health(consecutive_failures=EJECTION_THRESHOLD - 1)
    strike(health, 0, chance=chance)
    assert health.until == pytest.approx(seconds)


def test_what_ran_when_it_was_ejected_changes_nothing() -> None:
    health = ejected()
    until = health.until
    assert not strike(health, 5)
    assert not health.succeeded(5, half_open=False)
    assert (health.phase, health.until) == (Phase.EJECTED, until)


def test_a_trial_that_succeeds_brings_it_back_for_a_time_of_probation() -> None:
    health = ejected()
    assert health.succeeded(20, half_open=True)
    assert (health.phase, health.until) == (Phase.SLOW_START, 20 + SLOW_START_SECONDS)
    assert not health.passed(20 + SLOW_START_SECONDS - 0.001)
    assert health.passed(20 + SLOW_START_SECONDS)
    assert (health.phase, health.ejections) == (Phase.HEALTHY, 0)


def test_a_return_that_fails_is_ejected_for_longer() -> None:
    health = ejected()
    health.succeeded(20, half_open=True)
    assert strike(health, 25)
    assert (health.phase, health.until) == (Phase.EJECTED, 25 + 2 * FIRST_EJECTION)


def test_an_agent_that_cannot_be_spared_keeps_its_strikes() -> None:
    health = Health()
    for _ in range(5):
        assert not strike(health, 0, may_eject=False)
    assert health.phase is Phase.HEALTHY
    assert strike(health, 0)


# In the registry


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> AgentRegistry:
    return new_registry(clock, chance=lambda: 0.5)


def fail(registry: AgentRegistry, agent: Agent, times: int = 1) -> None:
    for _ in range(times):
        lease = registry.limiter.take(agent, "m:latest")
        registry.ejection.failed(lease, "connection reset")
        lease.release(Outcome.FAILED)


def serve(registry: AgentRegistry, agent: Agent) -> None:
    lease = registry.limiter.take(agent, "m:latest")
    lease.began()
    registry.ejection.succeeded(lease)
    lease.release()


def shown(agent: Agent) -> tuple[str, Phase]:
    return agent.status.value, agent.health.phase


def keep_alive(registry: AgentRegistry, clock: Clock, seconds: float) -> None:
    """Let time pass while all agents go on answering probes."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now = min(end, clock.now + 5)
        for agent in registry:
            registry.liveness.reached(agent)


def test_an_ejected_agent_gets_one_request_when_its_time_is_over(registry: AgentRegistry, clock: Clock) -> None:
    a, b = fleet(registry, "a", "b")
    fail(registry, a, 3)
    assert a.status is Status.EJECTED
    assert describe_agent(a, clock())["reason"] == "connection reset"
    assert all(registry.selection.select("m:latest") is b for _ in range(10))
    keep_alive(registry, clock, 10)
    chosen = {registry.selection.select("m:latest") for _ in range(4)}
    assert chosen == {a, b}
    half_open = registry.limiter.take(a, "m:latest")
    assert a.half_open_lease is half_open
    assert all(registry.selection.select("m:latest") is b for _ in range(10))
    registry.ejection.succeeded(half_open)
    half_open.release()
    assert shown(a) == ("online", Phase.SLOW_START)


def test_a_trial_whose_client_leaves_makes_room_for_the_next(registry: AgentRegistry, clock: Clock) -> None:
    a, _ = fleet(registry, "a", "b")
    fail(registry, a, 3)
    keep_alive(registry, clock, 10)
    registry.limiter.take(a, "m:latest").release(Outcome.CANCELLED)
    assert a.half_open_lease is None
    assert a.eligible
    fail(registry, a)
    assert not a.eligible
    assert a.health.until == clock.now + 20


def test_at_most_half_of_the_online_agents_are_ejected(registry: AgentRegistry) -> None:
    agents = fleet(registry, "a", "b", "c", "d", "e")
    for agent in agents:
        fail(registry, agent, 10)
    assert [agent.status for agent in agents].count(Status.EJECTED) == 2
    (lone,) = fleet(new_registry(Clock()), "lone")
    fail(registry, lone, 10)
    assert lone.status is Status.ONLINE


def test_agents_that_get_nothing_anyway_count_neither_as_ejected_nor_as_those_that_are_left(
    registry: AgentRegistry,
) -> None:
    stands, alias, b, c, drained = fleet(registry, "stands", "alias", "b", "c", "drained")
    registry.located(stands, "one host")
    registry.drain(drained)
    fail(registry, alias, 3)
    assert alias.status is Status.EJECTED
    registry.located(alias, "one host")
    assert alias.alias_of is stands
    fail(registry, c, 3)
    assert c.status is Status.EJECTED, "two of three are left"
    fail(registry, b, 3)
    assert b.status is Status.ONLINE, "one of three is left, and the drained one does not help"


def test_a_returning_agent_gets_what_it_runs_at_once_and_one_load_at_a_time(
    registry: AgentRegistry, clock: Clock
) -> None:
    a, _ = fleet(registry, "a", "b")
    registry.inventory.update_models(a, entries("m", "other"))
    registry.update_metrics("a", report(num_parallel=2))
    fail(registry, a, 3)
    keep_alive(registry, clock, 10)
    serve(registry, a)  # the trial, which has loaded m
    assert a.health.phase is Phase.SLOW_START
    cold = registry.limiter.take(a, "other:latest")
    assert not a.eligible, "a load is under way"
    cold.began()
    assert a.eligible
    second = registry.limiter.take(a, "m:latest")
    assert not a.eligible, "it runs two at once"
    second.release()
    assert a.eligible
    keep_alive(registry, clock, SLOW_START_SECONDS)
    assert a.health.phase is Phase.HEALTHY
    leases = [registry.limiter.take(a, "m:latest"), registry.limiter.take(a, "other:latest")]
    assert a.eligible
    for lease in [cold, *leases]:
        lease.release()


def test_an_agent_that_was_offline_returns_slowly_and_a_new_one_does_not(registry: AgentRegistry, clock: Clock) -> None:
    a, _ = fleet(registry, "a", "b")
    assert shown(a) == ("online", Phase.HEALTHY)
    registry.liveness.unreachable(a, "refused")
    registry.liveness.reached(a)
    assert shown(a) == ("online", Phase.SLOW_START)
    fail(registry, a)
    registry.liveness.unreachable(a, "refused")
    registry.liveness.reached(a)
    assert shown(a) == ("ejected", Phase.EJECTED), "it comes and goes"


def test_the_least_bad_is_tried_where_all_that_have_the_model_are_ejected(
    registry: AgentRegistry, clock: Clock
) -> None:
    a, b, *others = fleet(registry, "a", "b", "c", "d")
    for other in others:
        registry.inventory.update_models(other, entries("another"))
    fail(registry, b, 3)
    clock.now += 1
    fail(registry, a, 3)
    assert registry.selection.select("m:latest") is None
    assert registry.selection.least_bad("m:latest") is b
    assert registry.selection.least_bad("m:latest", [b]) is a
    half_open = registry.limiter.take(b, "m:latest")
    assert registry.selection.least_bad("m:latest") is a
    half_open.release(Outcome.CANCELLED)
    registry.drain(b)
    assert registry.selection.least_bad("m:latest") is a


def test_none_is_the_least_bad_while_one_that_is_well_is_only_busy(registry: AgentRegistry) -> None:
    registry.slots = 1
    a, b = fleet(registry, "a", "b")
    fail(registry, a, 3)
    lease = registry.limiter.take(b, "m:latest")
    assert registry.selection.select("m:latest") is None
    assert registry.selection.least_bad("m:latest") is None
    assert registry.selection.could_serve("m:latest")
    lease.release()
    assert registry.selection.select("m:latest") is b


def test_one_whose_load_seems_stuck_keeps_none_of_the_ejected_from_being_tried(
    registry: AgentRegistry, clock: Clock
) -> None:
    registry.slots = 1
    frozen, ejected = fleet(registry, "frozen", "ejected")
    for agent in (frozen, ejected):
        registry.inventory.update_loaded(agent, entries())
    registry.learner.estimates.load.observe(frozen.id, "m:latest", 2.0)
    load = registry.limiter.take(frozen, "m:latest")
    fail(registry, ejected, 3)
    clock.now += 3
    assert registry.selection.least_bad("m:latest") is None
    clock.now += 2
    assert registry.selection.least_bad("m:latest") is ejected
    load.began()
    assert registry.selection.least_bad("m:latest") is None, "it serves"


def test_one_whose_load_seems_stuck_keeps_nobody_waiting_who_could_go_to_an_avoided_agent(
    registry: AgentRegistry, clock: Clock
) -> None:
    registry.slots = 1
    frozen, avoided = fleet(registry, "frozen", "avoided")
    registry.inventory.update_loaded(frozen, entries())
    registry.learner.estimates.load.observe(frozen.id, "m:latest", 2.0)
    scheduler = Scheduler(registry, RequestQueue(clock))
    demand = Demand("m:latest")
    registry.avoidance.cannot_load(avoided, demand.model, demand.runner)
    registry.limiter.take(frozen, "m:latest")
    clock.now += 3
    assert scheduler.find(demand).agent is None, "the other may be ready at any moment"
    clock.now += 2
    assert scheduler.find(demand).agent is avoided


def test_each_change_is_logged_once_with_its_reason(
    registry: AgentRegistry, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    a, _ = fleet(registry, "a", "b")
    caplog.set_level(logging.INFO)
    caplog.clear()
    fail(registry, a, 3)
    keep_alive(registry, clock, 10)
    serve(registry, a)
    serve(registry, a)
    keep_alive(registry, clock, SLOW_START_SECONDS)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "Agent a is ejected for 10 s: 3 failures in a row, the last: connection reset.",
        "Agent a is back, in slow start: for 30 s it gets no more requests than it can run at once.",
        "Agent a is healthy again.",
    ]


def test_a_request_that_runs_no_model_says_nothing_of_an_agents_health(registry: AgentRegistry) -> None:
    a, _ = fleet(registry, "a", "b")
    for _ in range(5):
        lease = registry.limiter.take(a)
        registry.ejection.failed(lease, "no")
        lease.release(Outcome.FAILED)
    assert a.health.consecutive_failures == 0
    fail(registry, a, 2)
    lease = registry.limiter.take(a)
    registry.ejection.succeeded(lease)
    lease.release()
    assert a.health.consecutive_failures == 2


# Slots


def test_an_agent_is_not_chosen_beyond_its_slots_of_the_model(registry: AgentRegistry) -> None:
    for mode in ("metrics", "roundrobin", "least_requests"):
        registry.mode = mode
        a, b = fleet(registry, "a", "b")
        for agent in (a, b):
            registry.inventory.update_models(agent, entries("m", "other"))
            registry.update_metrics(agent.name, report(num_parallel=3))
        leases: list[Lease] = []
        while (chosen := registry.selection.select("m:latest")) is not None:
            leases.append(registry.limiter.take(chosen, "m:latest"))
            assert len(leases) <= 6
        assert (a.running, b.running) == ({"m:latest": 3}, {"m:latest": 3})
        assert registry.selection.select("other:latest") is not None
        assert registry.selection.select() is not None
        leases[0].release()
        assert registry.selection.select("m:latest") is leases[0].agent
        for lease in leases:
            lease.release()
        assert a.running == b.running == {}
        assert not a.full
        assert {registry.selection.select("m:latest"), registry.selection.select("m:latest")} == {a, b}


def test_the_option_wins_over_the_report_and_both_may_change(registry: AgentRegistry) -> None:
    (a,) = fleet(registry, "a")
    registry.update_metrics("a", report(num_parallel=2))
    leases = [registry.limiter.take(a, "m:latest"), registry.limiter.take(a, "m:latest")]
    assert registry.selection.select("m:latest") is None
    registry.slots = 3
    assert registry.selection.select("m:latest") is a
    registry.slots = 1
    assert registry.selection.select("m:latest") is None
    registry.slots = 0
    registry.update_metrics("a", report(num_parallel=4, at=1))
    assert registry.selection.select("m:latest") is a
    assert describe_agent(a, 0)["slots"] == 4
    for lease in leases:
        lease.release()


def test_the_agent_whose_models_are_not_known_has_slots_as_well(registry: AgentRegistry) -> None:
    registry.slots = 1
    agent, _ = registry.register("new", fleet(registry, "x")[0].address)
    registry.liveness.reached(agent)
    assert registry.selection.select("unheard:latest") is agent
    lease = registry.limiter.take(agent, "unheard:latest")
    assert registry.selection.select("unheard:latest") is None
    assert registry.selection.select("else:latest") is agent
    lease.release()
    assert registry.selection.select("unheard:latest") is agent


def test_a_report_stores_what_it_says_of_slots() -> None:
    assert AgentMetrics.model_validate(report().model_dump() | {"num_parallel": 2}).num_parallel == 2
