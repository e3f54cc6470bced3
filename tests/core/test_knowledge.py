"""What was learned outlives the process, as long as it holds and is not too old."""

from __future__ import annotations

from typing import Any

import pytest

from agent_reporter.wire import GpuMetrics, ModelEntry
from ollama_balancer.core.agent import Agent
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.knowledge import DAY, MAX_AGE, AgentRecord, Known, aged, latest
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.core.scoring.estimates import DECODE, LOAD
from tests.core.fakes import address, report
from tests.core.room import MODEL, Room

NOW = 1_800_000_000.0
RTX = GpuMetrics(name="NVIDIA GeForce RTX 4090", memory_total=24 * 2**30)
OLD = GpuMetrics(name="Tesla P40", memory_total=24 * 2**30)


def listed(name: str = "m", digest: str = "a" * 64, size: int = 5_000_000_000) -> ModelEntry:
    return ModelEntry(name=name, digest=digest, size=size)  # type: ignore[call-arg]


def serve(room: Room, agent: Agent, model: str = MODEL, **figures: float) -> None:
    usual = {
        "prompt_tokens": 1000,
        "prompt_seconds": 0.5,
        "output_tokens": 300,
        "output_seconds": 5.0,
        "load_seconds": 8.0,
    }
    room.serve(agent, Demand(model, tokens=1000), **(usual | figures))


def experienced(*, gpu: GpuMetrics | None = RTX, version: str = "0.33.0", answers: int = 10) -> Room:
    """A fleet of one that has served some requests."""
    room = Room("gpu-1")
    introduce(room.registry, room.agents[0], gpu=gpu, version=version)
    for _ in range(answers):
        serve(room, room.agents[0])
    return room


def introduce(
    registry: AgentRegistry, agent: Agent, *models: ModelEntry, gpu: GpuMetrics | None = RTX, version: str = "0.33.0"
) -> None:
    """What it tells of itself when it is there."""
    registry.inventory.update_models(agent, list(models) or [listed()])
    registry.inventory.update_version(agent, version)
    if gpu is not None:
        registry.update_metrics(agent.id, report(gpus=[gpu], loaded_models=[]))


def records(room: Room, now: float = NOW) -> list[AgentRecord]:
    knowledge = room.registry.knowledge
    return [record for agent in knowledge.agents() if (record := knowledge.record(agent, now)) is not None]


def restarted(room: Room, *names: str, after: float = 60.0, known: bool = False) -> Room:
    """Another process that has read what this one has written."""
    other = Room(*names, known=known)
    for record in records(room):
        other.registry.knowledge.restore(record, NOW + after)
    for output in room.registry.knowledge.outputs(NOW):
        other.registry.knowledge.restore_output(output, NOW + after)
    return other


def learned(room: Room, agent: str = "gpu-1") -> Any:
    found = room.registry.get(agent)
    assert found is not None
    return room.registry.learner.estimates.describe(found.id)


def test_what_was_learned_is_known_after_a_restart_and_goes_on_from_there() -> None:
    room = experienced()
    other = restarted(room, "gpu-1")
    agent = other.agents[0]
    assert learned(other) == learned(room)
    assert learned(other)[MODEL] == {
        "decode": {"value": 60.0, "observations": 10},
        "prefill": {"value": 2000.0, "observations": 10},
        "load": {"value": 8.0, "observations": 10},
        "output": {"value": 300.0, "observations": 10},
    }
    assert agent.stats.speeds == room.agents[0].stats.speeds
    introduce(other.registry, agent)
    assert learned(other) == learned(room)
    serve(other, agent)
    assert learned(other)[MODEL]["decode"]["observations"] == 11


def test_learned_slots_are_kept() -> None:
    room = experienced()
    room.agents[0].learners[MODEL].proven = 4
    agent = restarted(room, "gpu-1").agents[0]
    assert (agent.slots_for(MODEL), agent.slots) == (4, 4)


def test_how_many_prompts_are_kept_is_kept() -> None:
    room = experienced()
    room.agents[0].kept_prompts.observe(MODEL, 7, 1, cached=True)
    other = restarted(room, "gpu-1").agents[0]
    assert other.kept_prompts.known() == {MODEL: 8}
    other.kept_prompts.observe(MODEL, 9, 1, cached=True)
    assert other.kept_prompts.known() == {MODEL: 10}


def test_an_agent_that_joins_later_finds_what_was_learned_of_it() -> None:
    room = experienced()
    room.agents[0].learners[MODEL].proven = 3
    other = restarted(room)
    assert records(other) == [
        record._replace(models=tuple(each._replace(at=NOW) for each in record.models)) for record in records(room)
    ]
    agent, _ = other.registry.register("gpu-1", address(1))
    assert learned(other) == learned(room)
    assert agent.slots_for(MODEL) == 3


def test_what_was_learned_on_other_gpus_is_forgotten() -> None:
    other = restarted(experienced(), "gpu-1")
    introduce(other.registry, other.agents[0], gpu=OLD)
    assert learned(other) == {}
    assert other.agents[0].stats.speeds == {}
    introduce(other.registry, other.agents[0], gpu=GpuMetrics(name=OLD.name))  # the driver does not tell its memory now
    serve(other, other.agents[0])
    introduce(other.registry, other.agents[0], gpu=OLD)
    assert learned(other) != {}


def test_a_report_that_comes_before_the_file_is_read_decides_as_well() -> None:
    room, other = experienced(), Room("gpu-1")
    introduce(other.registry, other.agents[0], listed(digest="b" * 64))
    for record in records(room):
        other.registry.knowledge.restore(record, NOW)
    assert learned(other) == {}
    other = Room("gpu-1")
    introduce(other.registry, other.agents[0], gpu=OLD)
    for record in records(room):
        other.registry.knowledge.restore(record, NOW)
    assert learned(other) == {}


def test_a_model_that_was_pulled_anew_is_learned_anew() -> None:
    room = experienced()
    serve(room, room.agents[0], "n:latest")
    other = restarted(room, "gpu-1")
    introduce(other.registry, other.agents[0], listed(digest="b" * 64), listed("n"))
    assert list(learned(other)) == ["n:latest"]
    assert other.registry.learner.estimates.output(MODEL) == 200


def test_one_host_that_pulls_anew_takes_nothing_from_the_others() -> None:
    room = Room("gpu-1", "gpu-2")
    for agent in room.agents:
        introduce(room.registry, agent)
        serve(room, agent)
    introduce(room.registry, room.agents[0], listed(digest="b" * 64))
    assert (list(learned(room, "gpu-1")), list(learned(room, "gpu-2"))) == ([], [MODEL])
    assert room.registry.learner.estimates.output(MODEL) == pytest.approx(300)


def test_under_another_version_of_the_server_what_was_learned_is_a_first_guess() -> None:
    room = experienced()
    room.agents[0].learners[MODEL].proven = 4
    other = restarted(room, "gpu-1")
    introduce(other.registry, other.agents[0], version="0.40.0")
    assert learned(other)[MODEL]["decode"] == {"value": 60.0, "observations": 1}
    assert other.agents[0].slots_for(MODEL) == 2
    serve(other, other.agents[0], output_seconds=2.5)
    assert 80 < learned(other)[MODEL]["decode"]["value"] < 90


def test_an_agent_that_reports_other_slots_loses_those_that_were_learned() -> None:
    room = experienced()
    room.agents[0].learners[MODEL].proven = 4
    other = restarted(room, "gpu-1")
    other.registry.update_metrics("gpu-1", report(num_parallel=2))
    assert (other.agents[0].slots_for(MODEL), other.agents[0].learners) == (2, {})


def test_what_is_old_counts_less_and_in_the_end_not_at_all() -> None:
    room = experienced(answers=100)
    ages = {0.0: 100, 3600.0: 100, DAY: 35, 7 * DAY: 5, 29 * DAY: 1, MAX_AGE + 120: 0, -DAY: 100}
    for age, observations in ages.items():
        known = learned(restarted(room, "gpu-1", after=age)).get(MODEL, {"decode": {"observations": 0}})
        assert known["decode"]["observations"] == observations, age
    assert [aged(3, 14 * DAY), aged(1, MAX_AGE)] == [2, 1]


def test_restarting_often_makes_nothing_older_or_younger() -> None:
    room = experienced(answers=100)
    for _ in range(5):
        room = restarted(room, "gpu-1", after=0.0)
    assert records(room)[0].models[0].at == NOW
    room.registry.knowledge.agents()
    assert records(room, NOW + DAY)[0].models[0].at == NOW
    serve(room, room.agents[0])
    assert records(room, NOW + 2 * DAY)[0].models[0].at == NOW + 2 * DAY


def test_nothing_is_kept_of_an_agent_whose_record_is_too_old() -> None:
    other = restarted(experienced(), after=MAX_AGE + 120)
    facts = other.registry.learner.facts
    assert (other.registry.knowledge.agents(), facts.versions) == ([], {})
    assert other.registry.learner.estimates.likeness.hardware == {}


def test_an_agent_that_never_comes_back_is_forgotten_after_a_month() -> None:
    other = restarted(experienced())
    assert other.registry.knowledge.agents() != []
    assert records(other, NOW + MAX_AGE + 120) == []
    assert other.registry.knowledge.agents() == []


def test_a_new_host_starts_from_what_hosts_with_the_same_gpus_have_shown() -> None:
    room = Room("gpu-1", "gpu-2", "old-1", "old-2")
    for agent, gpu, seconds in zip(room.agents, (RTX, RTX, OLD, OLD), (2.0, 2.0, 20.0, 20.0), strict=True):
        introduce(room.registry, agent, listed(), listed("n", "c" * 64), gpu=gpu)
        for _ in range(10):
            serve(room, agent, output_seconds=seconds, load_seconds=seconds)
    new = {}
    for number, (name, gpu) in enumerate({"gpu-3": RTX, "old-3": OLD}.items(), 5):
        agent, _ = room.registry.register(name, address(number))
        introduce(room.registry, agent, listed(), listed("n", "c" * 64), gpu=gpu)
        new[name] = agent.id
    estimates = room.registry.learner.estimates
    assert estimates.decode.of(new["gpu-3"], MODEL).value == pytest.approx(150)
    assert estimates.decode.of(new["old-3"], MODEL).value == pytest.approx(15)
    assert estimates.load.value(new["old-3"], MODEL) == pytest.approx(20)
    # Of a model that nobody has served, the one host is as much faster as its kin was with the other model.
    ratio = estimates.decode.value(new["gpu-3"], "n:latest") / estimates.decode.value(new["old-3"], "n:latest")
    assert 5 < ratio < 12


def test_a_model_that_nobody_has_served_is_judged_by_its_size() -> None:
    room = Room("gpu-1")
    agent = room.agents[0]
    introduce(room.registry, agent, listed(), listed("large", "b" * 64, 40_000_000_000), listed("odd", "c" * 64, 0))
    estimates = room.registry.learner.estimates
    assert estimates.load.of(agent.id, "large:latest").value == pytest.approx(8 * LOAD)
    assert estimates.decode.of(agent.id, "large:latest").value == pytest.approx(DECODE / 8)
    for _ in range(5):
        serve(room, agent)
    assert estimates.load.of(agent.id, "large:latest").value == pytest.approx(64)
    assert estimates.decode.of(agent.id, "large:latest").value == pytest.approx(7.5)
    assert estimates.load.value(agent.id, "odd:latest") == pytest.approx(LOAD)


def test_the_latest_are_kept_where_there_are_too_many() -> None:
    [record] = records(experienced())
    [model] = record.models
    many = [record._replace(id=str(n), models=(model._replace(at=n), model._replace(at=0))) for n in range(10)]
    assert [each.id for each in latest(many, 6)] == ["9", "8", "7"]


def test_a_figure_that_cannot_be_is_held_within_bounds() -> None:
    [record] = records(experienced())
    wild = record.models[0]._replace(decode=Known(1e9, 5), load=Known(1e9, 5))
    other = Room("gpu-1")
    other.registry.knowledge.restore(record._replace(models=(wild,)), NOW)
    known = learned(other)[MODEL]
    assert (known["decode"]["value"], known["load"]["value"]) == (pytest.approx(1e5), pytest.approx(3600))
