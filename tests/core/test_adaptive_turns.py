"""The adaptive mode where it is easy to keep somebody waiting, or to believe what no longer holds."""

from __future__ import annotations

import random

import pytest

from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.policies.adaptive import LONGEST_PATIENCE
from ollama_balancer.core.queue import RequestQueue
from ollama_balancer.core.scheduler import Scheduler
from ollama_balancer.core.scoring.candidates import ALL
from ollama_balancer.core.scoring.estimates import MAX_OUTPUT
from ollama_balancer.core.scoring.placement import MAX_MODELS, Placement
from tests.core.fakes import Clock, address, entries, new_registry, report
from tests.core.room import MODEL, Room

LARGE = Demand(MODEL, runner="num_ctx=8192")

# Who waits, and for how long


@pytest.mark.parametrize("mode", ["adaptive", "least_requests"])
def test_who_waits_is_told_when_the_last_agent_turns_out_not_to_have_the_model(mode: str) -> None:
    room = Room("a", slots=1)
    room.registry.mode = mode
    room.take()
    for name in "xyz":
        room.wait(name)
    room.registry.inventory.forget_model(room.agents[0], MODEL)
    room.scheduler.look()
    assert room.granted == {"x": None, "y": None, "z": None}


def test_an_agent_whose_models_are_not_known_yet_is_used_where_the_others_are_busy() -> None:
    room = Room("a", slots=1)
    unknown, _ = room.registry.register("b", address(9))
    room.registry.liveness.reached(unknown)
    assert room.take().agent is room.agents[0]
    assert room.find() is unknown


def test_who_waits_for_the_host_that_knows_its_conversation_does_not_hold_up_those_behind() -> None:
    room = Room("a", "b", models=("m", "n"), slots=1)
    a, b = room.agents
    for agent in room.agents:
        room.registry.inventory.update_loaded(agent, entries("m", "n"))
    said = ((b"1", 100_000),)
    room.serve(a, Demand(MODEL, tokens=100_000, prefixes=said, new_prefixes=said), seconds=250.0)
    for agent in room.agents:
        room.registry.liveness.reached(agent)
    busy = [
        room.registry.limiter.take(a, MODEL),
        room.registry.limiter.take(b, MODEL),
        room.registry.limiter.take(b, "n:latest"),
    ]
    for lease in busy:
        lease.began()
    room.wait("long", Demand(MODEL, tokens=100_100, prefixes=said))
    room.wait("short", Demand(MODEL, tokens=50))
    busy[1].release()
    assert list(room.granted) == ["short"]


def test_who_waits_for_another_runner_does_not_hold_up_those_behind() -> None:
    room = Room("a", "b", slots=1)
    a, b = room.agents
    room.serve(a, LARGE, load_seconds=15.0)
    room.serve(b, load_seconds=15.0)
    room.registry.limiter.take(a, MODEL, LARGE).began()
    other = room.registry.limiter.take(b, MODEL)
    other.began()
    room.wait("large", LARGE)
    room.wait("plain")
    other.release()
    assert list(room.granted) == ["plain"]


def test_an_idle_host_that_has_the_model_is_used_though_a_busier_one_would_be_cheaper() -> None:
    room = Room("fast", "mid", "slow", models=("m", "n"), slots=1)
    fast, mid, slow = room.agents
    for agent, seconds in ((fast, 1.0), (mid, 1.5), (slow, 75.0)):
        for _ in range(6):
            room.serve(agent, output_tokens=200, output_seconds=seconds)
        room.registry.inventory.update_loaded(agent, entries("m", "n"))
    room.registry.limiter.take(fast, MODEL).began()
    room.registry.limiter.take(mid, "n:latest").began()
    assert room.find() is slow


def test_nobody_waits_for_longer_than_two_minutes_beside_an_idle_host() -> None:
    room = Room("a", "b", models=("m", "n"), slots=1)
    a, b = room.agents
    for number, agent in enumerate(room.agents):
        room.registry.update_metrics(agent.id, report(at=number, max_loaded_models=1))
    for _ in range(5):
        room.serve(a, output_tokens=200, output_seconds=10.0, load_seconds=130.0)
    room.registry.inventory.update_loaded(a, entries("m"))
    room.registry.inventory.update_loaded(b, entries("n"))
    room.clock.now += 10
    for _ in range(6):
        room.serve(b, "n:latest")
    room.registry.limiter.take(a, MODEL).began()
    room.wait("me")
    room.pass_time(LONGEST_PATIENCE - 1)
    assert room.granted == {}
    room.pass_time(2)
    assert [lease.agent for lease in room.granted.values() if lease] == [b]


def test_a_load_that_is_given_up_lets_the_other_models_go_on() -> None:
    room = Room("a", models=("m", "n"), slots=4)
    lease = room.take()
    room.wait("other", "n:latest")
    assert room.granted == {}
    lease.release(Outcome.CANCELLED)
    assert list(room.granted) == ["other"]


def test_of_a_large_fleet_others_are_looked_at_where_the_one_that_is_free_has_failed_the_request() -> None:
    clock = Clock()
    registry = new_registry(clock, mode="adaptive", slots=1, chance=random.Random(3).random)
    scheduler = Scheduler(registry, RequestQueue(clock))
    agents = []
    for number in range(ALL + 40):
        agent, _ = registry.register(f"a{number}", address(number % 250 + 1))
        registry.inventory.update_models(agent, entries("m"))
        registry.inventory.update_loaded(agent, entries("m") if number < 2 else [])
        registry.liveness.reached(agent)
        agents.append(agent)
    said = ((b"1", 4000),)
    registry.limiter.take(agents[0], MODEL, Demand(MODEL, tokens=4000, prefixes=said, new_prefixes=said)).began()
    found = scheduler.find(Demand(MODEL, tokens=4100, prefixes=said), [agents[1]], waited=60.0).agent
    assert found is not None
    assert found not in agents[:2]


# What is believed


def test_what_is_learned_of_a_model_on_one_host_counts_for_the_others_at_once() -> None:
    room = Room("a", "b", slots=1)
    a, _ = room.agents
    assert room.find() is not None
    for _ in range(8):
        room.serve(a, output_tokens=2000, output_seconds=1000.0, load_seconds=120.0)
    assert room.find() is a


def test_a_guess_is_not_kept_as_if_it_had_been_seen() -> None:
    room = Room("a", "b")
    a, b = room.agents
    room.serve(a)
    for _ in range(8):
        room.serve(b, output_tokens=100, output_seconds=100.0, prompt_tokens=100, prompt_seconds=1.0)
    estimates = room.registry.learner.estimates
    assert MODEL not in a.rates
    assert b.rates[MODEL] == estimates.rates(b.id, MODEL)
    assert b.rates[MODEL].decode == pytest.approx(1.0)


def test_a_reload_that_is_given_up_beside_a_running_request_is_over() -> None:
    room = Room("a", models=("m", "n"), slots=4)
    [agent] = room.agents
    room.serve(agent)
    running = room.registry.limiter.take(agent, MODEL)
    running.began()
    reload = room.registry.limiter.take(agent, MODEL, LARGE)
    assert MODEL in agent.loading
    reload.release(Outcome.CANCELLED)
    assert agent.loading == agent.loaders == {}
    running.release()
    assert room.find("n:latest") is agent


def test_a_report_of_more_room_in_memory_counts_at_once() -> None:
    room = Room("a", models=("m", "n"), slots=2)
    [agent] = room.agents
    room.registry.update_metrics(agent.id, report(at=0, max_loaded_models=1))
    room.registry.inventory.update_loaded(agent, entries("n"))
    before = room.scheduler.find(Demand(MODEL)).options[0].load
    room.registry.update_metrics(agent.id, report(at=1, max_loaded_models=3))
    assert room.scheduler.find(Demand(MODEL)).options[0].load < before


def test_a_model_that_was_loaded_with_other_options_has_forgotten_what_it_read() -> None:
    room = Room("a", slots=4)
    [agent] = room.agents
    said = ((b"1", 4000),)
    room.serve(agent, Demand(MODEL, tokens=4000, prefixes=said, new_prefixes=said))
    room.serve(agent, LARGE)
    room.serve(agent)
    assert room.registry.learner.prefix_cache.find(Demand(MODEL, tokens=4100, prefixes=said)) is None


def test_a_clock_that_was_an_hour_ahead_once_does_not_make_all_later_reports_old() -> None:
    room = Room("a", models=("m", "n"))
    [agent] = room.agents
    for at in (0, 3610):
        room.registry.update_metrics(agent.id, report(at=at, loaded_models=entries("n")))
        room.clock.now += 40  # so that the report with the earlier time is taken
    for number in range(3):
        room.clock.now += 10
        room.registry.update_metrics(agent.id, report(at=90 + 10 * number, loaded_models=entries("n")))
    room.registry.limiter.take(agent, MODEL).release()
    lease = room.registry.limiter.take(agent, MODEL)
    lease.began()
    lease.release()
    room.clock.now += 10
    room.registry.update_metrics(agent.id, report(at=120, loaded_models=entries("n")))
    assert MODEL not in agent.loaded_models


def test_a_prompt_that_is_longer_than_its_context_is_known_nowhere() -> None:
    room = Room("a", "b", slots=1)
    for agent in room.agents:
        room.registry.inventory.update_loaded(agent, entries("m"))
    said = ((b"1", 40_000),)
    lease = room.take(Demand(MODEL, tokens=4096, prefixes=said, new_prefixes=said))
    lease.began()
    choice = room.scheduler.find(Demand(MODEL, tokens=4096, prefixes=said))
    assert choice.agent not in (None, lease.agent)
    assert all(option.cost > 0 for option in choice.options)


def test_a_load_that_never_ends_attracts_nobody() -> None:
    room = Room("a", "b", slots=4)
    a, b = room.agents
    assert room.take().agent is a
    for agent in room.agents:
        room.clock.now += 60
        room.registry.liveness.reached(agent)
    room.registry.liveness.reached(a)
    assert room.find() is b


# Bounds


def test_models_that_nobody_uses_any_more_make_room_for_others() -> None:
    placement = Placement()
    for number in range(MAX_MODELS):
        placement.use(f"made-up-{number}")
    use = placement.use(MODEL)
    use.changed(1, 0, 1.0)
    assert placement.use(MODEL) is placement.look(MODEL) is use
    assert placement.look("made-up-0").in_flight == 0


def test_the_end_of_a_request_that_was_not_counted_leaves_no_model_with_fewer_than_none() -> None:
    placement = Placement()
    for number in range(MAX_MODELS):
        placement.use(f"made-up-{number}").changed(1, 0, 1.0)
    placement.use(MODEL).changed(1, 0, 1.0)
    placement.use("made-up-0").changed(-1, 0, 2.0)
    placement.use(MODEL).changed(-1, 0, 3.0)
    assert placement.use(MODEL).in_flight == 0


def test_figures_that_cannot_be_true_are_cut_to_what_may_be() -> None:
    room = Room("a", "b")
    a, b = room.agents
    for agent, model in ((a, MODEL), (b, MODEL), (a, "n:latest"), (b, "n:latest")) * 60:
        fast = agent is a
        room.serve(agent, model, output_tokens=2**52 if fast else 4, output_seconds=1e-9 if fast else 4e6)
    estimates = room.registry.learner.estimates
    for agent in room.agents:
        for model in (MODEL, "n:latest", "o:latest"):
            assert 0.0099 < estimates.decode.value(agent.id, model) < 100_001
    assert estimates.output(MODEL) <= MAX_OUTPUT
    assert all(0 < option.cost < 1e12 for option in room.scheduler.find(Demand(MODEL)).options)


def test_no_agent_is_believed_to_have_ten_thousand_models_in_memory() -> None:
    room = Room("a")
    room.registry.inventory.update_loaded(room.agents[0], entries(*(f"m{number}" for number in range(10_000))))
    assert len(room.agents[0].loaded_models) == 100
