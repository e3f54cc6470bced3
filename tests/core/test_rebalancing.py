"""Loads in place of other models, where those that are loaded cannot serve what is asked for."""

from __future__ import annotations

from collections.abc import Set

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_reporter.wire import ModelEntry
from ollama_balancer.core.agent import Agent
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.preloading import UNLOAD_TIMEOUT, Ending
from ollama_balancer.core.rebalancing import AGENTS, DRAIN, HOLD, IN_VAIN, LOOK, SETTLED, Rebalancing
from ollama_balancer.core.scoring.placement_plan import MIN_GAIN, Load, Plan, plan
from ollama_balancer.core.tickets import QueueKey
from tests.core.fakes import Clock, entries, fleet, new_registry
from tests.core.room import Room

STRONG, WEAK, OTHER = fleet(new_registry(Clock()), "strong", "weak", "other")
CAPACITY = {
    STRONG: {"busy": 10.0, "seldom": 10.0},
    WEAK: {"busy": 1.0, "seldom": 1.0},
    OTHER: {"busy": 1.0, "seldom": 1.0},
}


def planned(places: dict[Agent, Set[str]], demand: dict[str, float], fits: int = 1) -> Plan:
    return plan(places, demand, CAPACITY, lambda agent, models, model: len(models) < fits)


def test_a_strong_host_gets_the_model_that_is_asked_for_most() -> None:
    found = planned({STRONG: {"seldom"}, WEAK: {"busy"}, OTHER: {"seldom"}}, {"busy": 5.0, "seldom": 0.5})
    assert found.loads == [Load(STRONG, "busy", "seldom")]
    assert found.unserved > 0.5
    assert found.left == 0


def test_the_last_place_of_a_model_is_taken_only_for_another_place() -> None:
    found = planned({STRONG: {"seldom"}, WEAK: {"busy"}, OTHER: {"busy"}}, {"busy": 5.0, "seldom": 0.5})
    assert found.loads[0] == Load(STRONG, "busy", "seldom")
    assert [load.model for load in found.loads] == ["busy", "seldom"]
    alone = planned({STRONG: {"seldom"}}, {"busy": 5.0, "seldom": 0.5})
    assert alone.loads == []
    assert alone.left == alone.unserved


def test_a_model_of_which_little_is_asked_keeps_a_place_too() -> None:
    found = planned({STRONG: {"seldom"}, WEAK: {"busy"}, OTHER: {"busy"}}, {"busy": 5.0, "seldom": 0.01})
    assert [load.model for load in found.loads] == ["busy", "seldom"]


def test_where_there_is_room_nothing_is_unloaded() -> None:
    found = planned({STRONG: {"seldom"}, WEAK: {"busy"}}, {"busy": 5.0, "seldom": 0.5}, fits=2)
    assert found.loads == [Load(STRONG, "busy")]


def test_nothing_is_done_where_all_can_be_served() -> None:
    assert planned({STRONG: {"seldom"}, WEAK: {"busy"}}, {"busy": 0.5, "seldom": 0.5}) == Plan([], 0.0, 0.0)


MODELS = ("a", "b", "c", "d")
some_models = st.frozensets(st.sampled_from(MODELS), max_size=2)
rates = st.floats(0.01, 20)


@given(st.lists(st.tuples(some_models, rates), min_size=1, max_size=5), st.dictionaries(st.sampled_from(MODELS), rates))
def test_a_plan_gains_by_each_load_and_leaves_each_model_a_place(
    hosts: list[tuple[frozenset[str], float]], demand: dict[str, float]
) -> None:
    if not demand:
        return
    agents = fleet(new_registry(Clock()), *(f"h{number}" for number in range(len(hosts))))
    places = {agent: set(models) for agent, (models, _) in zip(agents, hosts, strict=True)}
    capacity = {agent: dict.fromkeys(MODELS, speed) for agent, (_, speed) in zip(agents, hosts, strict=True)}
    had = {model for models in places.values() for model in models & demand.keys()}
    found = plan(places, demand, capacity, lambda agent, models, model: len(models) < 2)
    assert found.left <= found.unserved - MIN_GAIN * bool(found.loads) + 1e-9
    for agent, model, instead in found.loads:
        assert model not in places[agent]
        places[agent] = places[agent] - {instead} | {model}
        assert len(places[agent]) <= 2
    assert had <= {model for models in places.values() for model in models}


BUSY, SELDOM = "busy:latest", "seldom:latest"


class Stranded(Room):
    """The strongest host has a model that is seldom asked for; another one waits for the weak host that has it."""

    def __init__(self, *more: str) -> None:
        super().__init__("strong", "weak", *more, models=("busy", "seldom"), slots=1)
        self.strong, self.weak = self.agents[:2]
        for agent in self.agents:
            seconds = 1.0 if agent is self.strong else 10.0
            for model in (BUSY, SELDOM):
                self.serve(agent, model, seconds=seconds, output_tokens=100, output_seconds=seconds)
            agent.memory.room, agent.memory.evidence_at = 1, self.clock.now
            self.hold(agent, SELDOM if agent is self.strong else BUSY)

    def hold(self, agent: Agent, model: str) -> None:
        """The host has that model in memory, and nothing else."""
        self.clock.now += 10
        self.registry.liveness.reached(agent)
        self.registry.inventory.update_loaded(agent, entries(model.partition(":")[0]))

    def overload(self, waiting: int = 30) -> None:
        self.registry.limiter.take(self.weak, BUSY, Demand(BUSY)).began()
        demand = Demand(BUSY)
        self.tickets = [
            self.scheduler.join(QueueKey(BUSY), f"client-{n}", lambda lease: self.granted.update({BUSY: lease}), demand)
            for n in range(waiting)
        ]

    def leave(self) -> None:
        for ticket in self.tickets:
            self.queue.leave(ticket)

    def due(self) -> Load | None:
        for agent in self.agents:
            self.registry.liveness.reached(agent)
        return self.registry.preloading.due()


def test_a_stranded_host_loads_what_is_waited_for() -> None:
    room = Stranded("third")
    third = room.agents[2]
    room.hold(third, SELDOM)
    assert room.due() is None, "nobody waits"
    room.clock.now += LOOK
    room.overload()
    load = room.due()
    assert load == Load(room.strong, BUSY, SELDOM)
    assert list(room.strong.loading) == [BUSY]
    assert room.due() is None
    room.registry.inventory.unloaded(room.strong, SELDOM)
    room.registry.preloading.ended(load, Ending.LOADED)
    assert list(room.strong.loaded_models) == [BUSY]
    assert room.granted, "who waited has the new place"


def test_where_most_cannot_be_served_anyhow_nothing_is_unloaded() -> None:
    room = Stranded("third")
    room.hold(room.agents[2], SELDOM)
    room.overload(waiting=100)
    assert room.due() is None


def test_a_model_that_is_to_be_unloaded_gets_no_requests_meanwhile() -> None:
    room = Stranded("third")
    room.hold(room.agents[2], SELDOM)
    room.overload()
    load = room.due()
    assert load == Load(room.strong, BUSY, SELDOM)
    assert room.find(SELDOM) is room.agents[2]
    room.registry.limiter.take(room.agents[2], SELDOM, Demand(SELDOM))
    assert room.find(SELDOM) is None
    room.registry.preloading.ended(load, Ending.NOT_ASKED)
    room.clock.now += UNLOAD_TIMEOUT
    room.registry.expire()
    assert room.find(SELDOM) is room.strong


def test_demand_for_models_of_the_cloud_is_not_what_places_are_looked_for() -> None:
    room = Stranded("third")
    room.hold(room.agents[2], SELDOM)
    cloud = ModelEntry.model_validate({"name": "c:cloud", "remote_host": "https://ollama.com:443"})
    for agent in room.agents:
        room.registry.inventory.update_models(agent, [*entries("busy", "seldom"), cloud])
    for _ in range(60):
        lease = room.registry.limiter.take(room.strong, "c:cloud", Demand("c:cloud"))
        lease.began()
        lease.release()
    room.overload()
    assert room.due() == Load(room.strong, BUSY, SELDOM)


@pytest.mark.parametrize("asked", [True, False])
def test_a_model_that_serves_requests_by_another_name_is_not_unloaded(asked: bool) -> None:
    room = Stranded("third")
    names = {"busy": "b", "seldom": "s", "seldom:8b": "s"}
    files = {name: ModelEntry.model_validate({"name": name, "digest": digest}) for name, digest in names.items()}
    for agent, loaded in zip(room.agents, ("seldom", "busy", "seldom"), strict=True):
        room.registry.inventory.update_models(agent, list(files.values()))
        room.hold(agent, "other:latest")
        room.clock.now += 1
        room.registry.inventory.update_loaded(agent, [files[loaded]])
    for _ in range(3 * asked):
        lease = room.registry.limiter.take(room.strong, "seldom:8b", Demand("seldom:8b"))
        lease.began()
        lease.release()
    room.overload()
    load = room.due()
    assert load is None if asked else load == Load(room.strong, BUSY, SELDOM)


def drained() -> tuple[Stranded, Lease]:
    """The strong host gets no more requests, though it has another slot, and answers the last one."""
    room = Stranded("third")
    room.registry.configure_slots(room.strong, 2)
    room.hold(room.agents[2], SELDOM)
    lease = room.registry.limiter.take(room.strong, SELDOM, Demand(SELDOM))
    lease.began()
    room.overload()
    assert room.due() is None
    room.clock.now += SETTLED + 1
    assert room.due() is None
    return room, lease


def test_a_host_is_kept_from_requests_while_the_plan_holds() -> None:
    room, lease = drained()
    for _ in range(2):
        room.clock.now += DRAIN - 1
        assert room.due() is None
        room.registry.expire()
        assert SELDOM in room.strong.full
    lease.release()
    assert room.due() == Load(room.strong, BUSY, SELDOM)


def test_a_host_gets_requests_again_once_the_plan_is_given_up() -> None:
    room, lease = drained()
    lease.release()
    load = room.due()
    assert load is not None
    room.registry.preloading.ended(load, Ending.NOT_ASKED)
    room.clock.now += UNLOAD_TIMEOUT
    room.registry.expire()
    assert room.due() is None
    assert room.find(SELDOM) is room.strong


def test_the_failure_of_another_load_leaves_the_plan() -> None:
    room = Stranded("third")
    room.hold(room.agents[2], SELDOM)
    room.overload()
    rebalancing = Rebalancing(room.registry.fleet, room.registry.limiter)

    def due() -> list[Load]:
        return list(rebalancing.due(room.clock.now, lambda agent, model: True))

    planned = due()
    assert planned == [Load(room.strong, BUSY, SELDOM)]
    rebalancing.failed(Load(room.weak, SELDOM))
    assert due() == planned
    rebalancing.failed(planned[0])
    assert due() == []
    room.clock.now += IN_VAIN
    assert due() == planned, "it may be carried out the next time"


def test_a_model_that_answers_is_not_unloaded() -> None:
    room = Stranded("third")
    room.hold(room.agents[2], SELDOM)
    lease = room.registry.limiter.take(room.strong, SELDOM, Demand(SELDOM))
    lease.began()
    room.overload()
    assert room.due() is None
    lease.release()
    assert room.due() == Load(room.strong, BUSY, SELDOM)


def test_what_hosts_serve_that_do_not_tell_what_is_loaded_counts() -> None:
    room = Stranded("third", "silent")
    third, silent = room.agents[2:]
    room.hold(third, SELDOM)
    for model in (BUSY, SELDOM) * 9:
        room.registry.learner.estimates.decode.observe(silent.id, model, 1000.0)
    silent.memory_known = False
    room.overload()
    assert room.due() is None


def test_the_other_place_of_a_model_comes_first() -> None:
    room = Stranded("third")
    third = room.agents[2]
    room.overload()
    assert room.due() is None, "it is the last place of the one, and the other is waited for"
    room.clock.now += SETTLED + 1
    first = room.due()
    assert first == Load(third, SELDOM, BUSY)
    assert room.due() is None
    room.registry.inventory.unloaded(third, BUSY)
    room.registry.preloading.ended(first, Ending.LOADED)
    room.due()
    assert list(room.strong.loading) == [BUSY]


@pytest.mark.parametrize("how", [Ending.FAILED, Ending.NOT_ASKED])
def test_a_host_that_does_not_load_it_is_not_asked_again(how: Ending) -> None:
    room = Stranded("third")
    room.hold(room.agents[2], SELDOM)
    room.overload()
    load = room.due()
    assert load is not None
    room.registry.preloading.ended(load, how)
    for _ in range(3):
        room.clock.now += HOLD
        assert room.due() is None


def test_a_plan_is_given_up_in_time() -> None:
    room = Stranded("third")
    room.hold(room.agents[2], SELDOM)
    lease = room.registry.limiter.take(room.strong, SELDOM, Demand(SELDOM))
    lease.began()
    room.overload()
    assert room.due() is None
    room.clock.now += HOLD
    room.leave()
    lease.release()
    assert room.due() is None


def test_it_is_switched_off_with_loads_ahead_and_in_large_fleets() -> None:
    room = Stranded("third")
    room.hold(room.agents[2], SELDOM)
    room.overload()
    room.registry.preloading.on = False
    assert room.due() is None
    room = Stranded(*(f"h{number}" for number in range(AGENTS)))
    room.overload()
    assert room.due() is None
