"""Models that a host serves without a load, though its list of loaded models does not have them."""

from __future__ import annotations

import pytest

from agent_reporter.wire import ModelEntry
from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.decision import Plan
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.observations import AnswerObservation
from tests.core.fakes import entries
from tests.core.room import Room

LATEST, TAG, OTHER = "m:latest", "m:8b", "other:latest"


def with_digests(*names: str, **digests: str) -> list[ModelEntry]:
    """Those names, of the digest `x` unless another is given."""
    return [
        ModelEntry.model_validate({"name": name, "digest": digests.get(name.partition(":")[0], "x")}) for name in names
    ]


@pytest.fixture
def room() -> Room:
    """A host that has room for one model, under two names, and has it loaded by the first."""
    room = Room("host", slots=4)
    agent = room.agents[0]
    room.registry.inventory.update_models(agent, with_digests("m:latest", "m:8b", "other:latest", other="y"))
    agent.memory.room, agent.memory.evidence_at = 1, room.clock.now
    listed(room, LATEST)
    return room


@pytest.fixture
def agent(room: Room) -> Agent:
    return room.agents[0]


def listed(room: Room, *names: str) -> None:
    room.clock.now += 5
    room.registry.liveness.reached(room.agents[0])
    room.registry.inventory.update_loaded(room.agents[0], with_digests(*names, other="y", idle="z"))


def plan(room: Room, model: str) -> Plan:
    return room.registry.selection.choose(Demand(model)).options[0].plan


def test_another_name_of_a_loaded_model_is_loaded_too(room: Room, agent: Agent) -> None:
    assert plan(room, TAG) is Plan.WARM
    lease = room.take(TAG)
    assert (agent.loading, agent.evicting) == ({}, set())
    assert room.find(LATEST) is agent, "it is not held up"
    lease.began()
    lease.release()
    assert list(agent.loaded_models) == [LATEST]
    listed(room, TAG)
    assert plan(room, LATEST) is Plan.WARM, "it may be listed under either name"
    listed(room, OTHER)
    assert plan(room, TAG) is not Plan.WARM


def test_a_model_in_demand_by_another_name_is_not_evicted_for_a_third(room: Room, agent: Agent) -> None:
    assert plan(room, OTHER) is Plan.EVICT
    for _ in range(3):
        lease = room.take(TAG)
        lease.began()
        lease.release()
    assert plan(room, OTHER) is Plan.CONTEND


def test_a_host_has_slots_for_another_name_of_a_loaded_model(room: Room, agent: Agent) -> None:
    placement = room.registry.learner.placement
    assert placement.look(TAG).slots == 4
    assert agent in placement.look(TAG).free
    listed(room, OTHER)
    assert placement.look(TAG).slots == 0


def test_a_host_whose_model_is_waited_for_by_another_name_loads_no_third(room: Room, agent: Agent) -> None:
    agent.memory.room = 2
    listed(room, LATEST, "idle:latest")
    assert plan(room, OTHER) is Plan.EVICT
    running = [room.take(LATEST), *(room.take(TAG) for _ in range(4))]
    assert plan(room, OTHER) is not Plan.CONTEND
    room.wait("waiting", TAG)
    assert plan(room, OTHER) is Plan.CONTEND
    for lease in running:
        lease.release()


def test_a_model_seen_to_answer_is_loaded_by_its_other_names_once_it_is_listed(room: Room, agent: Agent) -> None:
    listed(room)
    lease = room.take(LATEST)
    lease.began()
    lease.release()
    assert list(agent.loaded_models) == [LATEST]
    assert plan(room, TAG) is not Plan.WARM
    assert agent not in room.registry.learner.placement.look(TAG).free
    listed(room, LATEST)
    assert plan(room, TAG) is Plan.WARM
    assert agent in room.registry.learner.placement.look(TAG).free


def test_a_request_of_one_name_does_not_wait_for_a_load_once_the_other_is_listed(room: Room, agent: Agent) -> None:
    lease = room.take(LATEST)
    listed(room, TAG)
    assert (agent.loading, lease.cold) == ({}, False)


def test_other_options_of_another_name_are_loaded(room: Room, agent: Agent) -> None:
    room.registry.limiter.take(agent, TAG, Demand(TAG, "num_ctx=8192"))
    assert list(agent.loading) == [TAG]


def serve(room: Room, model: str, load_seconds: float, *, lists: tuple[str, ...], runner: str = "") -> None:
    """A list comes while it answers."""
    lease = room.registry.limiter.take(room.agents[0], model, Demand(model, runner))
    room.clock.now += 0.5
    lease.began()
    listed(room, *lists)
    room.registry.limiter.answered(lease, AnswerObservation(load_seconds=load_seconds))
    lease.release()
    listed(room, *lists)


def test_a_model_that_has_answered_without_a_load_while_it_was_not_listed_needs_none(room: Room, agent: Agent) -> None:
    serve(room, OTHER, 0.02, lists=(LATEST,))
    assert plan(room, OTHER) is Plan.WARM
    lease = room.take(OTHER)
    assert (agent.loading, agent.evicting) == ({}, set())
    lease.release(Outcome.CANCELLED)
    serve(room, OTHER, 5.0, lists=(LATEST,))
    assert plan(room, OTHER) is not Plan.WARM, "it was loaded this time"


def test_one_that_was_loaded_or_listed_needs_a_load_the_next_time(room: Room) -> None:
    serve(room, OTHER, 5.0, lists=(LATEST,))
    assert plan(room, OTHER) is not Plan.WARM
    serve(room, OTHER, 0.02, lists=(LATEST,), runner="num_ctx=8192")
    assert plan(room, OTHER) is not Plan.WARM
    serve(room, OTHER, 0.02, lists=(OTHER,))
    listed(room, LATEST)
    assert plan(room, OTHER) is not Plan.WARM
    serve(room, OTHER, 0.02, lists=(LATEST,))
    listed(room, OTHER)
    listed(room, LATEST)
    assert plan(room, OTHER) is not Plan.WARM, "it is listed when it is loaded"


def test_one_that_was_loaded_when_a_request_came_has_not_shown_that_it_needs_no_load(room: Room) -> None:
    serve(room, LATEST, 0.02, lists=(OTHER,))
    assert plan(room, LATEST) is not Plan.WARM


def test_a_host_whose_list_is_always_empty_serves_what_it_has_shown_to(room: Room, agent: Agent) -> None:
    listed(room)
    for model in (LATEST, OTHER):
        serve(room, model, 0.02, lists=())
        assert plan(room, model) is Plan.WARM
    room.registry.liveness.unreachable(agent, "gone")
    room.registry.liveness.reached(agent)
    room.registry.inventory.update_loaded(agent, [])
    assert plan(room, OTHER) is not Plan.WARM, "it may be another program now"


def test_hosts_may_give_anything_for_a_digest() -> None:
    room = Room("host")
    digests: tuple[object, ...] = ("", None, 1, [])
    odd = [ModelEntry.model_validate({"name": f"m{n}", "digest": each}) for n, each in enumerate(digests)]
    room.registry.inventory.update_models(room.agents[0], odd)
    room.registry.inventory.update_loaded(room.agents[0], [*odd[:1], *entries("n")])
    assert room.agents[0].unlisted.copies == {}
