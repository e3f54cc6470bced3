from __future__ import annotations

import pytest

from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.queue import RequestQueue
from ollama_balancer.core.scheduler import Scheduler
from ollama_balancer.core.tickets import QueueKey
from tests.core.fakes import Clock, entries, fleet, new_registry

M = QueueKey("m:latest")
OTHER = QueueKey("other:latest")


class Room:
    """A fleet with one slot per model and agent, and a line before it."""

    def __init__(self, *names: str) -> None:
        self.clock = Clock()
        self.registry = new_registry(self.clock, slots=1, chance=lambda: 0.5)
        self.agents = fleet(self.registry, *names)
        self.queue = RequestQueue(self.clock)
        self.scheduler = Scheduler(self.registry, self.queue)
        self.got: dict[str, Lease | None] = {}

    def fill(self, key: QueueKey = M) -> list[Lease]:
        leases = []
        while (agent := self.scheduler.find(Demand(key.model)).agent) is not None:
            leases.append(self.registry.limiter.take(agent, key.model))
        return leases

    def wait(self, name: str, key: QueueKey = M, client: str = "c") -> None:
        self.clock.now += 0.001

        def notify(lease: Lease | None) -> None:
            assert name not in self.got
            self.got[name] = lease

        self.queue.join(key, client, notify)

    def agent_of(self, name: str) -> Agent:
        lease = self.got[name]
        assert lease is not None
        return lease.agent

    def fail(self, agent: Agent, times: int = 3) -> None:
        for _ in range(times):
            lease = self.registry.limiter.take(agent, "m:latest")
            self.registry.ejection.failed(lease, "no")
            lease.release(Outcome.FAILED)


@pytest.fixture
def room() -> Room:
    return Room("a", "b")


def test_a_request_is_bound_to_the_agent_that_is_free_first(room: Room) -> None:
    a, b = room.agents
    leases = {lease.agent: lease for lease in room.fill()}
    for name in "12":
        room.wait(name)
    assert room.got == {}
    leases[b].release()
    assert room.agent_of("1") is b
    assert (a.running, b.running) == ({"m:latest": 1}, {"m:latest": 1}), "never one more"
    leases[a].release()
    assert room.agent_of("2") is a
    assert len(room.queue) == 0


def test_a_model_nobody_is_busy_with_is_not_held_up(room: Room) -> None:
    for agent in room.agents:
        room.registry.inventory.update_models(agent, entries("m", "other"))
    room.fill()
    for n in range(100):
        room.wait(str(n))
    assert room.scheduler.find(Demand("other:latest")).agent in room.agents


def test_a_request_that_an_agent_has_failed_does_not_hold_up_the_others(room: Room) -> None:
    a, b = room.agents
    leases = {lease.agent: lease for lease in room.fill()}
    room.wait("not a", QueueKey("m:latest", tried=frozenset({a})))
    room.wait("any")
    leases[a].release()
    assert room.agent_of("any") is a
    leases[b].release()
    assert room.agent_of("not a") is b


def test_a_pinned_request_waits_for_its_agent_and_the_oldest_comes_first(room: Room) -> None:
    a, b = room.agents
    leases = {lease.agent: lease for lease in room.fill()}
    room.wait("pinned", QueueKey("m:latest", b))
    room.wait("any")
    leases[b].release()
    assert room.agent_of("pinned") is b
    assert "any" not in room.got
    leases[a].release()
    assert room.agent_of("any") is a


def test_all_are_told_when_no_agent_is_left(room: Room) -> None:
    a, b = room.agents
    room.registry.inventory.update_models(b, entries("m", "other"))
    leases = room.fill() + room.fill(OTHER)
    room.wait("any")
    room.wait("pinned", QueueKey("m:latest", a))
    room.wait("not b", QueueKey("m:latest", tried=frozenset({b})))
    room.wait("other", OTHER)
    room.registry.liveness.unreachable(a, "gone")
    assert room.got == {"pinned": None, "not b": None}
    room.registry.drain(b)
    assert room.got == dict.fromkeys(("pinned", "not b", "any", "other"))
    assert len(room.queue) == 0
    for lease in leases:
        lease.release(Outcome.FAILED)


def test_an_agent_that_comes_back_serves_the_line(room: Room) -> None:
    a, b = room.agents
    leases = {lease.agent: lease for lease in room.fill()}
    room.registry.drain(b)
    leases[b].release()
    room.wait("1")
    assert room.got == {}
    room.registry.resume(b)
    assert room.agent_of("1") is b
    room.wait("2")
    room.registry.liveness.unreachable(a, "gone")
    leases[a].release(Outcome.FAILED)
    assert "2" not in room.got
    room.registry.liveness.reached(a)
    assert room.agent_of("2") is a


def test_a_new_agent_and_a_new_model_serve_the_line(room: Room) -> None:
    room.fill()
    for name in "12":
        room.wait(name)
    (c,) = fleet(room.registry, "c")
    assert room.agent_of("1") is c
    (d,) = fleet(room.registry, "d")
    assert room.agent_of("2") is d
    room.wait("other", OTHER)
    room.registry.inventory.update_models(d, entries("m", "other"))
    assert room.agent_of("other") is d


def test_more_slots_serve_the_line(room: Room) -> None:
    room.fill()
    for name in "123":
        room.wait(name)
    room.registry.slots = 2
    assert set(room.got) == {"1", "2"}
    assert all(agent.running == {"m:latest": 2} for agent in room.agents)


def test_an_ejected_agent_that_is_due_tries_one_of_those_who_wait(room: Room) -> None:
    a, b = room.agents
    room.fail(a)
    room.fill()
    for name in "12":
        room.wait(name)
    for _ in range(3):
        room.clock.now += 4
        room.registry.liveness.reached(a)
        room.registry.liveness.reached(b)
    room.registry.expire()
    assert room.agent_of("1") is a
    assert "2" not in room.got
    half_open = room.got["1"]
    assert half_open is not None
    room.registry.ejection.succeeded(half_open)
    half_open.release()
    assert room.agent_of("2") is a


def test_when_the_last_that_is_well_goes_the_least_bad_is_tried(room: Room) -> None:
    a, b = room.agents
    room.fail(a)
    room.fill()
    for name in "12":
        room.wait(name)
    room.registry.liveness.unreachable(b, "gone")
    assert room.agent_of("1") is a
    assert "2" not in room.got
    half_open = room.got["1"]
    assert half_open is not None
    room.registry.ejection.failed(half_open, "no")
    half_open.release(Outcome.FAILED)
    assert room.agent_of("2") is a, "never refused while something might serve"


def test_a_request_that_ends_while_its_options_are_loaded_leaves_open_with_which_the_model_is_in_memory() -> None:
    """The host has loaded it anew by then; those that go on waiting for these options need no load there."""
    room = Room("a", "b")
    a, b = room.agents
    room.registry.mode = "adaptive"
    room.registry.learner.estimates.load.observe(a.id, "m:latest", 200.0)
    for agent in (a, b):
        room.registry.inventory.update_loaded(agent, entries("m"))
    first = room.registry.limiter.take(a, "m:latest", Demand("m:latest", "num_ctx=8192"))
    first.began()
    first.release()
    busy = room.registry.limiter.take(b, "m:latest", Demand("m:latest"))
    busy.began()
    given_up = room.registry.limiter.take(a, "m:latest", Demand("m:latest"))
    assert given_up.loading
    room.wait("1")
    room.clock.now += 5
    room.registry.inventory.update_loaded(a, entries("m"))
    given_up.release(Outcome.CANCELLED)
    assert room.agent_of("1") is a


def test_a_returning_agent_serves_those_who_wait_one_load_at_a_time(room: Room) -> None:
    a, b = room.agents
    for agent in (a, b):
        room.registry.inventory.update_models(agent, entries("m", "other"))
    room.registry.slots = 2
    room.fill()
    room.fill(OTHER)
    assert len(room.queue) == 0
    (c,) = fleet(room.registry, "c")
    room.registry.inventory.update_models(c, entries("m", "other"))
    room.registry.liveness.unreachable(c, "gone")
    for n in range(3):
        room.wait(f"m{n}")
        room.wait(f"other{n}", OTHER)
    room.registry.liveness.reached(c)
    assert list(room.got) == ["m0"]
    lease = room.got["m0"]
    assert lease is not None
    lease.began()
    assert list(room.got) == ["m0", "other0"]


def test_a_host_that_forgot_its_slots_while_it_loads_keeps_no_idle_one_from_being_used() -> None:
    """It had a slot free for those that weighed it, and none for those that were to be sent: nobody got anything."""
    clock = Clock()
    registry = new_registry(clock, mode="adaptive")
    queue = RequestQueue(clock)
    scheduler = Scheduler(registry, queue)
    idle, frozen = fleet(registry, "idle", "frozen")
    estimates = registry.learner.estimates
    estimates.load.observe(frozen.id, "m:latest", 60.0)
    estimates.decode.observe(frozen.id, "m:latest", 100.0)
    estimates.decode.observe(idle.id, "m:latest", 1.0)

    def pass_time(seconds: float) -> None:
        clock.now += seconds
        registry.liveness.reached(idle)
        registry.liveness.reached(frozen)
        registry.expire()
        scheduler.look()

    registry.inventory.update_loaded(idle, entries("m"))
    registry.inventory.update_loaded(frozen, entries("m"))
    while frozen.slots_for("m:latest") > 1:
        # It is seen to run one at once.
        first, second = registry.limiter.take(frozen, "m:latest"), registry.limiter.take(frozen, "m:latest")
        first.began()
        pass_time(10)
        first.release()
        second.began()
        second.release()
    pass_time(3)
    registry.inventory.update_loaded(frozen, entries())
    loading = registry.limiter.take(frozen, "m:latest")
    busy = []
    while (agent := scheduler.find(Demand("m:latest")).agent) is not None:
        busy.append(registry.limiter.take(agent, "m:latest"))
    got: list[Lease | None] = []
    for _ in range(4):
        scheduler.join(M, "c", got.append)
    registry.liveness.unreachable(frozen, "it answers late")
    registry.liveness.reached(frozen)
    registry.inventory.update_loaded(frozen, entries())
    for _ in range(40):
        pass_time(1)
    got.clear()
    for lease in busy:
        assert lease.agent is idle
        lease.release()
    assert loading.agent is frozen
    assert idle.running, "it is idle, and three wait"
