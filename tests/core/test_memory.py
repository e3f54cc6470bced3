"""What fits in a host's memory, from its lists of loaded models and its GPUs' sizes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import pytest

from agent_reporter.wire import ModelEntry
from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.memory import EVIDENCE_SECONDS, MAX_SIZES
from tests.core.fakes import entries, report
from tests.core.room import Room

A, B, C = "a:latest", "b:latest", "c:latest"


@pytest.fixture
def room() -> Room:
    return Room("host", models=("a", "b", "c"))


@pytest.fixture
def agent(room: Room) -> Agent:
    return room.agents[0]


def listed(room: Room, *names: str, sizes: Mapping[str, int] | None = None) -> None:
    """A probe, some seconds after the one before, finds these loaded."""
    room.clock.now += 5
    found = entries(*names)
    if sizes is not None:
        found = [ModelEntry.model_validate({"name": name, "size": sizes[name]}) for name in names]
    room.registry.inventory.update_loaded(room.agents[0], found)


def has_room(room: Room, model: str) -> bool:
    return room.agents[0].has_room(model, room.clock.now)


def test_one_more_model_is_expected_to_fit_until_a_load_evicts_another(room: Room) -> None:
    listed(room, "a")
    assert has_room(room, B)
    listed(room, "a", "b")
    assert has_room(room, C)
    listed(room, "c", "b")
    assert not has_room(room, A)
    assert room.agents[0].fits() == 2


def test_no_second_trial_begins_while_the_first_is_loading(room: Room, agent: Agent) -> None:
    listed(room, "a")
    room.registry.limiter.take(agent, B, Demand(B))
    assert not has_room(room, C)


def test_a_model_that_disappears_while_another_loads_was_evicted_for_it(room: Room, agent: Agent) -> None:
    listed(room, "a")
    lease = room.registry.limiter.take(agent, B, Demand(B))
    listed(room)
    lease.began()
    listed(room, "b")
    lease.release()
    assert not has_room(room, A)


def test_a_model_whose_time_is_over_was_not_evicted(room: Room) -> None:
    listed(room, "a", "b")
    listed(room, "a")
    listed(room)
    listed(room, "c")
    assert has_room(room, A)


def test_a_model_that_was_unloaded_by_a_request_was_not_evicted(room: Room, agent: Agent) -> None:
    listed(room, "a")
    room.registry.limiter.take(agent, B, Demand(B))
    room.registry.inventory.unloaded(agent, A)
    listed(room, "b")
    assert has_room(room, A)


def test_a_model_that_is_listed_for_a_moment_after_it_was_unloaded_was_not_evicted(room: Room, agent: Agent) -> None:
    listed(room, "a")
    room.registry.limiter.take(agent, B, Demand(B))
    room.registry.inventory.unloaded(agent, A)
    listed(room, "a")
    listed(room, "b")
    assert has_room(room, A)


def test_a_model_that_is_evicted_after_it_was_unloaded_and_loaded_again_was_evicted(room: Room, agent: Agent) -> None:
    listed(room, "a")
    room.registry.inventory.unloaded(agent, A)
    listed(room)
    listed(room, "a")
    listed(room, "b")
    assert not has_room(room, A)


@pytest.mark.parametrize(
    ("expires_at", "host_time", "evicted"),
    [
        ("2026-11-23T19:02:05.015469895Z", "2026-11-23T19:02:04", False),
        ("2026-11-23T20:02:05.015469895+01:00", "2026-11-23T19:02:04", False),
        ("2026-11-23T19:02:05.015469895Z", "2026-11-23T19:01:55", True),
        ("2319-03-05T18:45:35.47989194Z", "2026-11-23T19:02:04", True),
        ("2026-11-23T19:02:05.015469895Z", None, True),
        ("soon", "2026-11-23T19:02:04", True),
        (7, "2026-11-23T19:02:04", True),
    ],
)
def test_a_model_whose_keep_alive_runs_out_during_a_load_was_not_evicted_for_it(
    room: Room, agent: Agent, expires_at: object, host_time: str | None, evicted: bool
) -> None:
    at = None if host_time is None else datetime.fromisoformat(f"{host_time}Z").timestamp()
    entry = ModelEntry.model_validate({"name": "a", "expires_at": expires_at})
    room.registry.inventory.update_loaded(agent, [entry])
    room.registry.limiter.take(agent, B, Demand(B))
    room.registry.inventory.update_loaded(agent, entries("b"), host_time=at)
    assert has_room(room, A) is not evicted


def test_a_host_that_was_away_has_evicted_nothing(room: Room, agent: Agent) -> None:
    listed(room, "a")
    room.registry.liveness.unreachable(agent, "gone")
    room.registry.liveness.reached(agent)
    listed(room, "b")
    assert has_room(room, A)


def test_small_models_fit_where_a_large_one_does_not() -> None:
    sizes = {"a": 12, "b": 9, "c": 3}
    room = Room("host", models=("a", "b", "c"))
    listed(room, "a", sizes=sizes)
    listed(room, "b", sizes=sizes)
    assert not has_room(room, A), "21 was too much"
    assert has_room(room, C), "12 may fit"
    listed(room, "b", "c", sizes=sizes)
    assert not has_room(room, A)


def test_an_eviction_that_sizes_do_not_explain_is_due_to_the_number_of_models() -> None:
    sizes = {"a": 12, "b": 9, "c": 3}
    room = Room("host", models=("a", "b", "c"))
    listed(room, "a", "b", sizes=sizes)
    listed(room, "b", "c", sizes=sizes)
    assert room.agents[0].fits() == 2, "15 is less than the 21 that were held: it allows two models"
    assert not has_room(room, A)


def test_the_size_of_the_file_stands_for_that_of_a_model_not_loaded_yet() -> None:
    room = Room("host", models=("a", "b"))
    sizes = {"a": 12, "b": 9, "c": 10}
    room.registry.inventory.update_models(
        room.agents[0], [ModelEntry.model_validate({"name": name, "size": size}) for name, size in sizes.items()]
    )
    listed(room, "a", sizes=sizes)
    listed(room, "b", sizes=sizes)
    listed(room, "a", sizes=sizes)
    assert not has_room(room, C)


def test_an_eviction_is_forgotten_in_time_for_what_else_uses_the_memory_may_have_ended(room: Room) -> None:
    listed(room, "a")
    listed(room, "b")
    assert not has_room(room, A)
    room.clock.now += EVIDENCE_SECONDS + 1
    assert has_room(room, A)


def test_a_host_that_reports_more_than_it_was_seen_to_hold_is_not_believed(room: Room, agent: Agent) -> None:
    room.registry.update_metrics(agent.id, report(max_loaded_models=3))
    listed(room, "a")
    assert has_room(room, B)
    listed(room, "b")
    assert not has_room(room, A)


GB = 10**9


def listed_files(room: Room, **sizes: int) -> None:
    files = [ModelEntry.model_validate({"name": name, "size": size}) for name, size in sizes.items()]
    room.registry.inventory.update_models(room.agents[0], files)


def with_gpus(room: Room, *sizes: int | None) -> None:
    gpus = [{"name": "GPU", "memory_total": size} for size in sizes]
    room.registry.update_metrics(room.agents[0].id, report(gpus=gpus))


def test_the_memory_of_the_gpus_says_what_fits(room: Room) -> None:
    listed_files(room, a=10 * GB, b=5 * GB, c=20 * GB)
    with_gpus(room, 16 * GB)
    listed(room, "a")
    assert has_room(room, B)
    assert not has_room(room, C)
    with_gpus(room, 16 * GB, 16 * GB)
    assert has_room(room, C)
    with_gpus(room, 16 * GB, None)
    assert not has_room(room, C), "nothing is known of the second one: no more than most GPUs have is expected"


def test_that_more_did_not_fit_does_not_mean_that_less_than_that_does(room: Room) -> None:
    sizes = {"a": 15 * GB, "b": 11 * GB, "c": 10 * GB}
    listed_files(room, **sizes)
    with_gpus(room, 16 * GB)
    listed(room, "b", sizes=sizes)
    listed(room, "a", sizes=sizes)
    assert not has_room(room, B), "26 GB were too much"
    assert not has_room(room, C), "25 GB are more than the GPU has"


def test_each_gpu_may_hold_as_many_models_as_ollama_has_it(room: Room) -> None:
    small = {f"s{number}": GB for number in range(4)}
    listed_files(room, **small)
    with_gpus(room, 48 * GB)
    listed(room, "s0", "s1", sizes=small)
    assert has_room(room, "s2:latest")
    listed(room, "s0", "s1", "s2", sizes=small)
    assert not has_room(room, "s3:latest")


def test_what_was_seen_counts_more_than_what_gpus_have(room: Room) -> None:
    sizes = {"a": 10 * GB, "b": 10 * GB}
    listed_files(room, **sizes)
    with_gpus(room, 16 * GB)
    listed(room, "a", "b", sizes=sizes)
    listed(room, "a", sizes=sizes)
    assert has_room(room, B), "part of it may be in the host's own memory"


def test_what_was_seen_to_fit_counts_no_more_once_the_host_has_other_gpus(room: Room) -> None:
    sizes = {"a": 10 * GB, "b": 20 * GB}
    listed_files(room, **sizes)
    with_gpus(room, 48 * GB)
    listed(room, "a", "b", sizes=sizes)
    with_gpus(room, 16 * GB)
    listed(room, "a", sizes=sizes)
    assert not has_room(room, B)


def test_the_sizes_of_models_that_were_listed_long_ago_make_room_for_others(room: Room, agent: Agent) -> None:
    with_gpus(room, 16 * GB)
    for first in range(0, 2 * MAX_SIZES, 100):
        many = {f"m{number}": 1 for number in range(first, first + 100)}
        listed(room, *many, sizes=many)
    assert len(agent.memory.sizes) <= MAX_SIZES
    listed(room)
    sizes = {"a": 10 * GB, "b": 20 * GB}
    listed_files(room, **sizes)
    listed(room, "a", sizes=sizes)
    assert not has_room(room, B)


def test_where_nothing_is_known_no_more_fits_than_most_gpus_have(room: Room) -> None:
    listed_files(room, a=14 * GB, b=14 * GB, c=4 * GB)
    listed(room, "a")
    assert not has_room(room, B)
    assert has_room(room, C)


def test_a_load_beside_others_does_not_hold_them_up(room: Room, agent: Agent) -> None:
    room.serve(agent, A)
    listed(room, "a")
    assert room.take(B).agent is agent
    assert room.find(A) is agent


def test_a_load_that_evicts_holds_up_the_others_until_the_list_shows_which_it_was(room: Room, agent: Agent) -> None:
    listed_files(room, a=4 * GB, b=4 * GB, c=20 * GB)
    with_gpus(room, 24 * GB)
    for model in (A, B):
        room.serve(agent, model, load_seconds=30.0)
    listed(room, "a", "b")
    room.registry.limiter.take(agent, C, Demand(C))
    assert room.find(A) is None
    listed(room, "a")
    assert room.find(A) is None, "24 GB are too much still"
    listed(room)
    assert not agent.evicting


def test_a_model_that_answered_a_moment_before_it_was_evicted_is_not_loaded_any_more(room: Room, agent: Agent) -> None:
    listed(room, "b")
    listed(room, "a")
    room.serve(agent, A)
    room.registry.limiter.take(agent, B, Demand(B))
    room.clock.now += 0.1
    room.registry.inventory.update_loaded(agent, [], room.clock.now)
    assert (agent.evicting, agent.loaded_models) == (set(), {}), "nothing holds it back but that it has to be loaded"
    assert room.find(A) is None


def test_a_load_for_a_model_that_was_evicted_before_they_began_evicts_another(room: Room, agent: Agent) -> None:
    listed(room, "b")
    listed(room, "a")
    room.serve(agent, A)
    late = room.registry.limiter.take(agent, A, Demand(A))
    listed(room, "b")
    assert (list(agent.loading), agent.evicting) == ([A], {A})
    assert room.find(B) is None
    late.release(Outcome.CANCELLED)
    assert (agent.loading, agent.evicting) == ({}, set())
    assert room.find(B) is agent


def test_a_load_for_a_model_that_was_evicted_before_they_began_may_fit(room: Room, agent: Agent) -> None:
    room.serve(agent, B)
    listed(room, "a", "b")
    told: list[Agent] = []
    room.registry.fleet.on_load = told.append
    room.registry.limiter.take(agent, A, Demand(A))
    listed(room, "b")
    assert (list(agent.loading), agent.evicting) == ([A], set()), "they were listed together"
    assert room.find(B) is agent
    assert told == [agent]


def test_an_older_list_does_not_bring_a_model_back_that_was_unloaded(room: Room, agent: Agent) -> None:
    listed(room, "a", "b")
    asked = room.clock.now = room.clock.now + 1
    room.clock.now += 0.1
    room.registry.inventory.unloaded(agent, B)
    room.registry.inventory.update_loaded(agent, entries("a", "b"), asked)
    assert list(agent.loaded_models) == [A]
    listed(room, "a", "b")
    assert list(agent.loaded_models) == [A, B], "it has been loaded again"


def test_requests_of_a_model_that_was_evicted_before_they_began_wait_for_its_load(room: Room, agent: Agent) -> None:
    room.serve(agent, A)
    listed(room, "a")
    begun, late = (room.registry.limiter.take(agent, A, Demand(A)) for _ in range(2))
    begun.began()
    listed(room, "b")
    assert agent.loading == {}, "it answers, so it is loaded"
    begun.release()
    listed(room, "b")
    assert list(agent.loading) == [A]
    late.release(Outcome.CANCELLED)
    assert agent.loading == {}
