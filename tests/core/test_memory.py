"""What fits in a host's memory, from its lists of loaded models alone."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from agent_reporter.wire import ModelEntry
from ollama_balancer.core.agent import Agent
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.memory import EVIDENCE_SECONDS
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
