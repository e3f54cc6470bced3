"""Loads on the balancer's own account, of models whose slots are all in use."""

from __future__ import annotations

import pytest

from agent_reporter.wire import ModelEntry
from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.observations import AnswerObservation
from ollama_balancer.core.preloading import AGENTS, AT_ONCE, MODELS, PAUSE, REFUSALS, Ending
from ollama_balancer.core.scoring.placement_plan import Load
from tests.core.fakes import entries
from tests.core.room import MODEL, Room


@pytest.fixture
def room() -> Room:
    """Of two hosts with one slot, a has the model loaded and is faster."""
    room = Room("a", "b", slots=1)
    room.serve(room.agents[0])
    return room


def begin(room: Room, demand: Demand | None = None) -> Lease:
    lease = room.registry.limiter.take(room.agents[0], MODEL, demand or Demand(MODEL))
    lease.began()
    return lease


def due(room: Room) -> str | None:
    found = room.registry.preloading.due()
    return None if found is None else found[0].name


def loading(room: Room) -> Agent:
    """The host that loads the model ahead of demand."""
    begin(room)
    assert due(room) == "b"
    return room.agents[1]


def test_a_model_whose_slots_are_all_in_use_is_loaded_on_one_more_host(room: Room) -> None:
    assert due(room) is None
    b = loading(room)
    assert list(b.loading) == [MODEL]
    assert due(room) is None, "it is on its way"
    room.clock.now += 9
    room.registry.preloading.ended(Load(b, MODEL), Ending.LOADED)
    assert (b.loading, list(b.loaded_models), b.loaders) == ({}, [MODEL], {})
    seconds, observations = room.registry.learner.estimates.load.known(b.id, MODEL)
    assert (round(seconds, 3), observations) == (9, 1)
    assert room.find() is b
    assert due(room) is None, "two slots suffice for one request"


def test_the_fastest_host_with_room_is_chosen() -> None:
    room = Room("a", "slow", "fast", "full", slots=1, models=("m", "other"))
    room.serve(room.agents[0])
    for agent, seconds in zip(room.agents[1:], (20.0, 4.0, 2.0), strict=True):
        agent_of = room.registry.limiter.take(agent, MODEL, Demand(MODEL))
        agent_of.began()
        room.registry.limiter.answered(agent_of, AnswerObservation(10, 0.1, 200, seconds, 0.1))
        agent_of.release()
        room.clock.now += 5
        room.registry.inventory.update_loaded(agent, [])
    full = room.agents[3]
    for name in ("m", "other"):
        room.clock.now += 5
        room.registry.inventory.update_loaded(full, entries(name))
    begin(room)
    assert not full.has_room(MODEL, room.clock.now)
    assert due(room) == "fast"


def test_a_host_that_refuses_is_not_asked_again_at_once(room: Room) -> None:
    begin(room)
    assert due(room) == "b"
    room.registry.preloading.ended(Load(room.agents[1], MODEL), Ending.FAILED)
    assert room.agents[1].loading == {}
    assert due(room) is None
    room.clock.now += PAUSE + 1
    room.registry.liveness.reached(room.agents[1])
    begin(room).release(Outcome.CANCELLED)
    assert due(room) == "b"


def test_a_host_on_which_a_load_never_ends_does_not_keep_others_from_it() -> None:
    room = Room("a", "b", "c", slots=1)
    room.serve(room.agents[0])
    begin(room)
    first = room.registry.preloading.due()
    assert first is not None
    for _ in range(2):
        room.pass_time(PAUSE / 2)
        assert due(room) is None
    room.registry.preloading.ended(first, Ending.FAILED)
    found = room.registry.preloading.due()
    assert found is not None
    assert found != first


def test_a_model_that_several_hosts_refuse_is_left_alone() -> None:
    room = Room("a", *(f"h{number}" for number in range(2 * REFUSALS)), slots=1)
    room.serve(room.agents[0])
    begin(room)
    asked = 0
    while (found := room.registry.preloading.due()) is not None:
        room.registry.preloading.ended(found, Ending.FAILED)
        asked += 1
    assert asked == REFUSALS
    room.pass_time(PAUSE + 1)
    assert room.registry.preloading.due() is not None


def test_hosts_that_do_not_unload_another_model_have_not_refused_this_one() -> None:
    hosts = [f"h{number}" for number in range(2 * REFUSALS)]
    room = Room("a", *hosts, slots=1)
    room.serve(room.agents[0])
    begin(room)
    asked = []
    while (found := room.registry.preloading.due()) is not None:
        room.registry.preloading.ended(found, Ending.NOT_ASKED)
        asked.append(found.agent.name)
    assert sorted(asked) == hosts, "each of them once"


def test_a_load_is_not_begun_twice(room: Room) -> None:
    b = loading(room)
    lease = room.registry.limiter.take(b, MODEL, Demand(MODEL))
    lease.began()
    lease.release()
    room.pass_time(PAUSE)
    room.registry.inventory.update_loaded(b, [])
    assert due(room) is None
    room.registry.preloading.ended(Load(b, MODEL), Ending.FAILED)
    assert (b.loading, b.loaders) == ({}, {})


def test_a_host_that_does_not_keep_what_it_loads_is_not_asked_without_end(room: Room) -> None:
    b = loading(room)
    room.registry.preloading.ended(Load(b, MODEL), Ending.LOADED)
    room.clock.now += 5
    room.registry.inventory.update_loaded(b, [])
    assert list(b.loaded_models) == []
    assert due(room) is None


def test_a_host_that_does_not_answer_any_more_is_left_alone(room: Room) -> None:
    begin(room)
    room.registry.liveness.unreachable(room.agents[1], "gone")
    assert due(room) is None


def test_a_host_that_leaves_while_it_loads_leaves_nothing(room: Room) -> None:
    b = loading(room)
    room.registry.remove(b)
    room.registry.preloading.ended(Load(b, MODEL), Ending.LOADED)
    assert b.loading == b.loaders == {}
    assert b not in room.registry.learner.placement.use(MODEL).holders


def test_a_host_in_slow_start_gets_requests_again_as_soon_as_the_load_is_over(room: Room) -> None:
    b = loading(room)
    room.registry.liveness.unreachable(b, "gone")
    room.registry.liveness.reached(b)
    assert not b.eligible
    room.registry.preloading.ended(Load(b, MODEL), Ending.FAILED)
    assert b.eligible


def test_a_load_that_a_request_has_begun_anew_leaves_nothing(room: Room) -> None:
    b = loading(room)
    early = room.registry.limiter.take(b, MODEL, Demand(MODEL))
    early.began()
    early.release()
    for name in ("m", "other", "m", "other"):
        room.clock.now += 5
        room.registry.inventory.update_loaded(b, entries(name))
    late = room.registry.limiter.take(b, MODEL, Demand(MODEL))
    assert b.evicting == {MODEL}
    room.registry.preloading.ended(Load(b, MODEL), Ending.LOADED)
    late.release(Outcome.CANCELLED)
    assert (b.loading, b.loaders, b.evicting) == ({}, {}, set())


def test_what_others_are_thought_to_take_is_computed_anew_after_a_load(room: Room) -> None:
    estimates = room.registry.learner.estimates
    begin(room)
    assert due(room) == "b"
    before = estimates.generation(MODEL)
    room.clock.now += 99
    room.registry.preloading.ended(Load(room.agents[1], MODEL), Ending.LOADED)
    assert estimates.generation(MODEL) == before + 1


def test_a_model_that_was_there_already_says_nothing_of_loads(room: Room) -> None:
    begin(room)
    assert due(room) == "b"
    room.clock.now += 0.01
    room.registry.preloading.ended(Load(room.agents[1], MODEL), Ending.LOADED)
    assert room.registry.learner.estimates.load.known(room.agents[1].id, MODEL)[1] == 0


def test_a_model_that_was_loaded_with_options_is_left_to_requests(room: Room) -> None:
    begin(room).release()
    begin(room, Demand(MODEL, "num_ctx=8192"))
    assert due(room) is None


def test_other_modes_and_the_option_switch_it_off(room: Room) -> None:
    begin(room)
    room.registry.mode = "roundrobin"
    assert due(room) is None
    room.registry.mode = "adaptive"
    room.registry.preloading.on = False
    assert due(room) is None
    room.registry.preloading.on = True
    assert due(room) == "b"


def test_no_more_than_some_loads_are_in_progress() -> None:
    models = [f"m{number}" for number in range(AT_ONCE + 2)]
    room = Room("a", *(f"b{number}" for number in range(AT_ONCE + 2)), slots=1, models=models)
    for model in models:
        room.serve(room.agents[0], f"{model}:latest")
    for model in models:
        room.registry.limiter.take(room.agents[0], f"{model}:latest", Demand(f"{model}:latest")).began()
    assert [due(room) is not None for _ in models] == [True] * AT_ONCE + [False, False]


def test_a_model_is_loaded_only_where_it_is(room: Room) -> None:
    room.registry.inventory.update_models(room.agents[1], [ModelEntry(name="other")])
    begin(room)
    assert due(room) is None


def test_a_model_of_the_cloud_is_loaded_nowhere(room: Room) -> None:
    entry = ModelEntry.model_validate({"name": "m", "remote_host": "https://ollama.com:443"})
    room.registry.inventory.update_models(room.agents[1], [entry])
    begin(room)
    assert due(room) is None


class Counted(dict[str, float]):
    """Counts how often it is looked into."""

    looks = 0

    def __contains__(self, key: object) -> bool:
        Counted.looks += 1
        return super().__contains__(key)


def test_of_many_hosts_that_all_have_too_much_to_do_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [f"m{number}:latest" for number in range(2 * MODELS)]
    room = Room(*(f"a{number}" for number in range(3 * AGENTS)), slots=1, models=models)
    for agent in room.agents:
        room.registry.inventory.update_loaded(agent, entries(*models))
        for model in models:
            room.registry.limiter.take(agent, model, Demand(model)).began()
        monkeypatch.setattr(agent, "loading", Counted())
    Counted.looks = 0
    assert due(room) is None
    assert 0 < Counted.looks <= MODELS * AGENTS


def test_of_a_large_fleet_some_are_looked_at() -> None:
    names = [f"b{number}" for number in range(3 * AGENTS)]
    room = Room("a", *names, slots=1)
    room.serve(room.agents[0])
    begin(room)
    assert due(room) in names
