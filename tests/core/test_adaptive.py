"""The adaptive mode: who is chosen, who waits, what is learned, under a fake clock."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agent_reporter.wire import ModelEntry
from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import MAX_LOADED, Outcome
from ollama_balancer.core.decision import Plan, in_words
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.scheduler import MAX_OVERTAKEN
from ollama_balancer.core.scoring.candidates import ALL
from ollama_balancer.core.scoring.estimates import LOAD, MAX_MODELS, OUTPUT
from ollama_balancer.core.scoring.scorer import WHOLE
from ollama_balancer.core.tickets import QueueKey
from tests.core.fakes import Clock, address, entries, new_registry, report
from tests.core.room import MODEL, Room


def test_with_no_information_at_all_it_is_least_requests_with_rotation() -> None:
    room = Room("a", "b", "c", slots=4, known=False)
    leases = [room.take() for _ in range(6)]
    assert [lease.agent.name for lease in leases] == ["a", "b", "c", "a", "b", "c"]
    leases[1].release(Outcome.CANCELLED)
    assert room.take().agent.name == "b"


def test_a_host_that_has_the_model_in_memory_is_preferred() -> None:
    room = Room("a", "b", "c")
    room.registry.inventory.update_loaded(room.agents[1], entries("m"))
    assert [room.find() for _ in range(3)] == [room.agents[1]] * 3


def test_the_first_byte_of_an_answer_is_proof_that_the_model_is_in_memory() -> None:
    room = Room("a", "b")
    lease = room.take()
    lease.began()
    lease.release()
    assert [room.find() for _ in range(3)] == [lease.agent] * 3


def test_a_report_that_comes_late_does_not_erase_what_a_first_byte_has_proven_since() -> None:
    room = Room("a", "b")
    agent = room.agents[0]
    room.registry.update_metrics(agent.id, report(at=0, loaded_models=entries("other")))
    room.clock.now += 10
    lease = room.registry.limiter.take(agent, MODEL)
    lease.began()
    lease.release()
    room.clock.now += 1
    # Made six seconds ago by the host's clock, when the model was not there yet.
    room.registry.update_metrics(agent.id, report(at=5, loaded_models=entries("other")))
    assert MODEL in agent.loaded_models
    room.clock.now += 10
    room.registry.update_metrics(agent.id, report(at=21, loaded_models=entries("other")))
    assert MODEL not in agent.loaded_models


def test_a_load_is_told_of_when_it_begins_and_is_over_for_another_model_may_have_been_evicted() -> None:
    room = Room("a", models=("m", "n"))
    agent = room.agents[0]
    told: list[Agent] = []
    room.registry.fleet.on_load = told.append
    lease = room.take()
    assert told == [agent]
    lease.began()
    assert told == [agent] * 2
    lease.release()
    room.serve(agent)
    assert told == [agent] * 2
    room.registry.limiter.load_began(agent, "n:latest")
    assert told == [agent] * 3
    room.registry.limiter.load_ended(agent, "n:latest", loaded=True)
    assert told == [agent] * 4


def test_a_load_is_told_of_when_it_is_given_up_for_it_may_have_evicted_another() -> None:
    room = Room("a")
    [agent] = room.agents
    first, second = (room.registry.limiter.take(agent, MODEL, Demand(MODEL)) for _ in range(2))
    told: list[Agent] = []
    room.registry.fleet.on_load = told.append
    first.release(Outcome.CANCELLED)
    assert told == [], "another request waits for it"
    second.release(Outcome.CANCELLED)
    assert told == [agent]


def test_a_model_in_the_cloud_is_never_loaded_and_holds_nobody_up() -> None:
    room = Room("a", models=("m",))
    agent = room.agents[0]
    cloud = ModelEntry.model_validate({"name": "c:cloud", "remote_host": "https://ollama.com:443"})
    room.registry.inventory.update_models(agent, [*entries("m"), cloud])
    agent.memory.room, agent.memory.evidence_at = 1, room.clock.now
    told: list[Agent] = []
    room.registry.fleet.on_load = told.append
    room.registry.inventory.update_loaded(agent, entries("m"))
    assert not agent.has_room("c:cloud", room.clock.now)
    for _ in range(2):
        choice = room.registry.selection.choose(Demand("c:cloud"))
        assert (choice.options[0].plan, choice.options[0].load) == (Plan.WARM, 0)
        lease = room.take("c:cloud")
        assert (agent.loading, agent.evicting) == ({}, set())
        assert room.find() is agent
        lease.began()
        room.clock.now += 5
        room.registry.inventory.update_loaded(agent, entries("m"))
        assert list(agent.loaded_models) == [MODEL]
        lease.release()
    assert not told


def test_a_model_of_that_name_that_is_not_in_the_cloud_any_more_has_to_be_loaded() -> None:
    room = Room("a", models=("m",))
    agent = room.agents[0]
    for host in ("https://ollama.com:443", None):
        entry = ModelEntry.model_validate({"name": "m", "remote_host": host})
        room.registry.inventory.update_models(agent, [entry])
        lease = room.take()
        assert list(agent.loading) == ([] if host else [MODEL])
        lease.release()


def test_how_many_models_fit_is_what_was_seen_together_not_what_was_loaded_one_after_the_other() -> None:
    room = Room("a", models=("m", "n"))
    [agent] = room.agents
    for model in (MODEL, "n:latest"):
        room.serve(agent, Demand(model))
    assert agent.fits() == 1
    room.clock.now += 10
    room.registry.inventory.update_loaded(agent, entries("m", "n"))
    assert agent.fits() == 2


def test_a_host_that_was_away_is_cold() -> None:
    room = Room("a", "b")
    agent = room.agents[0]
    room.registry.inventory.update_loaded(agent, entries("m"))
    room.registry.liveness.unreachable(agent, "gone")
    room.registry.liveness.reached(agent)
    assert MODEL not in agent.loaded_models


def test_other_runner_options_need_another_load() -> None:
    room = Room("a", "b")
    plain, large = Demand(MODEL), Demand(MODEL, runner="num_ctx=8192")
    first = room.take(plain)
    first.began()
    first.release()
    second = room.registry.limiter.take(first.agent, MODEL, large)
    assert second.loading
    second.began()
    second.release()
    assert not room.registry.limiter.take(first.agent, MODEL, large).loading
    assert room.registry.limiter.take(first.agent, MODEL, plain).loading


def test_the_faster_host_is_preferred_once_it_has_shown_to_be() -> None:
    room = Room("slow", "fast")
    slow, fast = room.agents
    for _ in range(3):
        room.serve(slow, output_tokens=100, output_seconds=10.0)
        room.serve(fast, output_tokens=100, output_seconds=1.0)
    assert [room.find() for _ in range(3)] == [fast] * 3


def test_a_conversation_goes_on_where_its_beginning_was_read_if_that_is_long() -> None:
    room = Room("a", "b", slots=4)
    for agent in room.agents:
        room.registry.inventory.update_loaded(agent, entries("m"))
    first = Demand(MODEL, tokens=4000, prefixes=((b"1", 4000),), new_prefixes=((b"1", 4000),))
    lease = room.take(first)
    lease.began()
    lease.release()
    following = Demand(MODEL, tokens=4200, prefixes=((b"1", 4000), (b"2", 4200)))
    assert [room.find(following) for _ in range(4)] == [lease.agent] * 4
    others = {room.find(Demand(MODEL, tokens=4200, prefixes=((b"3", 4200),))) for _ in range(4)}
    assert others == set(room.agents)


@pytest.mark.parametrize(
    ("waits_for", "goes_to"),
    [
        ({}, "slow"),
        ({"tools": True}, "fast"),
        ({"streams": False}, "fast"),
        ({"streams": False, "output_limit": 0}, "slow"),
    ],
)
def test_who_needs_the_whole_answer_leaves_a_slow_host_for_a_faster_one(
    waits_for: dict[str, Any], goes_to: str
) -> None:
    """The fast host has to read the prompt for 2 s, and answers 8 s sooner."""
    room = Room("slow", "fast", slots=4)
    for agent, seconds in zip(room.agents, (10.0, 2.0), strict=True):
        for _ in range(3):
            room.serve(agent, prompt_tokens=4000, prompt_seconds=2.0, output_tokens=100, output_seconds=seconds)
    said = ((b"1", 4000),)
    room.serve(room.agents[0], Demand(MODEL, tokens=4000, prefixes=said, new_prefixes=said))
    found = room.find(Demand(MODEL, tokens=4000, prefixes=said, **waits_for))
    assert found is not None
    assert found.name == goes_to


def test_a_request_waits_for_a_warm_host_rather_than_load_on_a_cold_one_but_not_for_ever() -> None:
    room = Room("warm", "cold", slots=1)
    warm, cold = room.agents
    for _ in range(3):
        room.serve(warm, output_tokens=100, output_seconds=1.0, load_seconds=15.0)
    busy = room.take()
    assert busy.agent is warm
    choice = room.scheduler.find(Demand(MODEL))
    assert choice.agent is None
    assert [option.agent for option in choice.options] == ["warm", "cold"]
    granted: list[Lease | None] = []
    room.queue.join(QueueKey(MODEL), "me", granted.append)
    room.clock.now += 5
    room.scheduler.look()
    assert granted == []
    room.clock.now += 60
    room.registry.liveness.reached(cold)
    room.scheduler.look()
    assert [lease.agent for lease in granted if lease] == [cold]


def test_who_waits_gets_the_warm_host_when_it_is_free() -> None:
    room = Room("warm", "cold", slots=1)
    warm = room.agents[0]
    for _ in range(3):
        room.serve(warm, output_tokens=100, output_seconds=1.0, load_seconds=15.0)
    busy = room.take()
    granted: list[Lease | None] = []
    room.queue.join(QueueKey(MODEL), "me", granted.append)
    busy.release()
    assert [lease.agent for lease in granted if lease] == [warm]


def test_who_waits_with_a_conversation_that_the_free_host_has_read_goes_first_but_not_for_ever() -> None:
    room = Room("a", slots=1)
    room.registry.inventory.update_loaded(room.agents[0], entries("m"))
    said = ((b"1", 2000),)
    busy = room.take(Demand(MODEL, tokens=2000, prefixes=said, new_prefixes=said))
    busy.began()
    served: list[str] = []

    def join(name: str, demand: Demand) -> None:
        def served_now(lease: Lease | None) -> None:
            nonlocal busy
            assert lease is not None
            busy = lease
            lease.began()
            served.append(name)

        room.scheduler.join(QueueKey(MODEL), name, served_now, demand)

    join("first", Demand(MODEL, tokens=100))
    for number in range(MAX_OVERTAKEN + 2):
        join(f"again {number}", Demand(MODEL, tokens=2100, prefixes=said, new_prefixes=said))
    for _ in range(MAX_OVERTAKEN + 1):
        busy.release()
    assert served == [*(f"again {number}" for number in range(MAX_OVERTAKEN)), "first"]


def test_a_conversation_is_forgotten_with_the_model_that_read_it() -> None:
    room = Room("a", "b", slots=2)
    agent = room.agents[0]
    said = ((b"1", 2000),)
    room.serve(agent, Demand(MODEL, tokens=2000, prefixes=said, new_prefixes=said))
    room.clock.now += 10
    room.registry.inventory.update_loaded(agent, [])
    room.registry.inventory.update_loaded(agent, entries("m"))
    assert room.registry.learner.prefix_cache.find(Demand(MODEL, tokens=2100, prefixes=said)) is None


def test_the_more_wait_the_sooner_a_host_with_room_loads_the_model_as_well() -> None:
    room = Room("warm", "cold", slots=1)
    warm, cold = room.agents
    for _ in range(3):
        room.serve(warm, output_tokens=100, output_seconds=5.0, load_seconds=15.0)
    room.take()
    assert room.find() is None
    for number in range(8):
        room.queue.join(QueueKey(MODEL), f"c{number}", lambda lease: None)
    assert room.find() is cold


def test_a_model_in_demand_is_not_pushed_out_where_another_host_has_room() -> None:
    room = Room("a", "b", models=("m", "n"), slots=1)
    a, b = room.agents
    for number, agent in enumerate(room.agents):
        room.registry.update_metrics(agent.id, report(at=number, max_loaded_models=1))
    room.registry.inventory.update_loaded(a, entries("m"))
    for _ in range(5):
        room.serve(a)
    lease = room.take("n:latest")
    assert lease.agent is b


def test_two_models_that_are_both_asked_for_settle_on_a_host_each() -> None:
    room = Room("a", "b", models=("m", "n"), slots=1)
    for number, agent in enumerate(room.agents):
        room.registry.update_metrics(agent.id, report(at=number, max_loaded_models=1))
    loads = 0
    for _ in range(40):
        for model in (MODEL, "n:latest"):
            lease = room.take(model)
            loads += lease.loading
            lease.began()
            # What a host that fits one model does.
            room.registry.inventory.update_loaded(lease.agent, entries(model))
            room.clock.now += 1
            for agent in room.agents:
                room.registry.liveness.reached(agent)
            lease.release()
    assert loads == 2


def test_a_host_that_loads_gets_nothing_else_until_it_has() -> None:
    room = Room("a", models=("m", "n"), slots=4)
    lease = room.take()
    assert lease.loading
    assert room.find("n:latest") is None
    granted: list[Lease | None] = []
    room.queue.join(QueueKey("n:latest"), "me", granted.append)
    lease.began()
    assert len(granted) == 1


def test_load_times_are_learned_only_from_a_host_that_had_nothing_else_to_do() -> None:
    room = Room("a", "b", models=("m", "n"), slots=4)
    a, b = room.agents
    room.serve(a, load_seconds=4.0)
    load = room.registry.learner.estimates.load
    assert load.of(a.id, MODEL).value == pytest.approx(4)
    other = room.registry.limiter.take(b, "n:latest")
    room.serve(b, load_seconds=30.0)
    other.release()
    assert load.of(b.id, MODEL).observations == 0


def test_a_short_load_duration_is_no_load() -> None:
    room = Room("a")
    room.serve(room.agents[0], load_seconds=0.05)
    assert room.registry.learner.estimates.load.of(room.agents[0].id, MODEL).observations == 0


def test_streams_that_tell_no_timings_are_learned_from_when_their_bytes_come() -> None:
    room = Room("a")
    agent = room.agents[0]
    room.registry.inventory.update_loaded(agent, entries("m"))
    room.serve(agent, Demand(MODEL, tokens=1000), seconds=10.0, output_tokens=101)
    estimates = room.registry.learner.estimates
    assert estimates.decode.of(agent.id, MODEL).value == pytest.approx(100 / 5)
    assert estimates.prefill.of(agent.id, MODEL).value == pytest.approx(1000 / 5)


def test_reading_a_prompt_of_which_most_was_known_says_nothing_about_the_pace() -> None:
    room = Room("a")
    agent = room.agents[0]
    first = Demand(MODEL, tokens=4000, prefixes=((b"1", 4000),), new_prefixes=((b"1", 4000),))
    room.serve(agent, first, prompt_tokens=4000, prompt_seconds=4.0)
    prefill = room.registry.learner.estimates.prefill
    assert prefill.of(agent.id, MODEL).value == pytest.approx(1000)
    again = Demand(MODEL, tokens=4100, prefixes=((b"1", 4000), (b"2", 4100)))
    room.serve(agent, again, prompt_tokens=4100, prompt_seconds=0.02)
    assert prefill.of(agent.id, MODEL).observations == 1


def test_an_answer_that_was_cut_short_by_its_limit_says_nothing_about_the_models_answers() -> None:
    room = Room("a")
    room.serve(room.agents[0], Demand(MODEL, output_limit=5), output_tokens=5, output_seconds=0.1)
    assert room.registry.learner.estimates.output_of(MODEL).observations == 0
    room.serve(room.agents[0], Demand(MODEL, output_limit=500), output_tokens=50, output_seconds=1.0)
    assert room.registry.learner.estimates.output_of(MODEL).value == pytest.approx(50)


def test_the_pace_of_a_request_is_that_of_one_alone_whatever_ran_beside_it() -> None:
    room = Room("a", slots=2)
    agent = room.agents[0]
    room.registry.inventory.update_loaded(agent, entries("m"))
    beside = room.registry.limiter.take(agent, MODEL)
    beside.began()
    room.serve(agent, output_tokens=100, output_seconds=7.0)
    beside.release()
    assert room.registry.learner.estimates.decode.of(agent.id, MODEL).value == pytest.approx(100 / 7 * 1.4)


def test_the_decision_names_the_chosen_and_the_two_next_best_with_their_terms() -> None:
    room = Room("a", "b", "c", "d")
    room.registry.inventory.update_loaded(room.agents[2], entries("m"))
    choice = room.scheduler.find(Demand(MODEL, tokens=800))
    assert choice.agent is room.agents[2]
    assert len(choice.options) == 3
    best, second, _ = choice.options
    assert best.agent == "c"
    assert best.load == 0 < second.load
    assert best.prefill == pytest.approx(1.0)
    assert best.cost == pytest.approx(best.wait + best.load + best.prefill + best.answer + best.interference)
    assert in_words(choice.options).startswith("warm here, next best ")


def test_an_agent_that_has_failed_the_request_is_left_out() -> None:
    room = Room("a", "b")
    room.registry.inventory.update_loaded(room.agents[0], entries("m"))
    assert room.scheduler.find(Demand(MODEL), [room.agents[0]]).agent is room.agents[1]
    assert room.scheduler.find(Demand(MODEL), room.agents).agent is None


def test_a_load_that_takes_much_longer_than_it_should_holds_up_no_other_model() -> None:
    room = Room("a", models=("m", "n"), slots=4)
    assert room.take().loading
    assert room.find("n:latest") is None
    room.clock.now += 2 * LOAD
    room.registry.liveness.reached(room.agents[0])
    assert room.find("n:latest") is room.agents[0]


def test_a_load_that_begins_anew_again_and_again_holds_up_no_other_model_for_ever() -> None:
    room = Room("host", models=("m", "n"), slots=4)
    agent, other = room.agents[0], "n:latest"
    for name in ("n", "m", "n"):
        room.clock.now += 5
        room.registry.inventory.update_loaded(agent, entries(name))
    waits = room.registry.limiter.take(agent, MODEL)
    room.wait("x", other)
    for _ in range(round(4 * LOAD / 5)):
        room.pass_time(4)
        next_one = room.take()
        room.pass_time(1)
        waits.release(Outcome.CANCELLED)
        waits = next_one
        assert MODEL in agent.loading
    assert "x" in room.granted
    waits.release(Outcome.CANCELLED)
    assert not agent.restarted


def test_of_a_large_fleet_the_warm_host_with_the_conversation_is_among_those_looked_at() -> None:
    clock = Clock()
    registry = new_registry(clock, mode="adaptive", chance=random.Random(3).random)
    for number in range(ALL * 2):
        new, _ = registry.register(f"a{number}", address(number % 250 + 1))
        registry.inventory.update_models(new, entries("m"))
        registry.liveness.reached(new)
    first = Demand(MODEL, tokens=4000, prefixes=((b"1", 4000),), new_prefixes=((b"1", 4000),))
    agent = registry.selection.choose(first).agent
    assert agent is not None
    lease = registry.limiter.take(agent, MODEL, first)
    lease.began()
    lease.release()
    assert all(registry.selection.choose(first).agent is agent for _ in range(20))


def test_of_a_large_fleet_all_are_looked_at_that_have_a_model_loaded_which_few_have() -> None:
    room = Room(*(f"a{number}" for number in range(ALL + WHOLE)))
    for seconds, agent in enumerate(room.agents[:WHOLE], 1):
        room.serve(agent, seconds=seconds, output_tokens=100, output_seconds=seconds)
    room.pass_time(1)
    assert {room.find() for _ in range(20)} == {room.agents[0]}, "the fastest"


def test_nothing_is_left_when_all_have_ended() -> None:
    room = Room("a", "b", models=("m", "n"), slots=2)
    leases = [room.take(model) for model in (MODEL, "n:latest", MODEL)]
    for lease in leases:
        lease.began()
    for lease in leases:
        lease.release()
    placement = room.registry.learner.placement
    assert placement.use(MODEL).in_flight == placement.use("n:latest").in_flight == 0
    assert all(not agent.loading and not agent.loaders for agent in room.agents)
    for agent in room.agents:
        room.registry.remove(agent)
    assert placement.use(MODEL).slots == placement.use("n:latest").slots == 0
    assert not placement.use(MODEL).slots_by_agent
    assert not placement.use(MODEL).free


def test_names_that_clients_make_up_are_not_all_remembered_of_a_host_that_lists_nothing() -> None:
    room = Room()
    agent, _ = room.registry.register("llama", address(1))
    room.registry.liveness.reached(agent)
    first = room.registry.limiter.take(agent, "m0:latest")
    first.began()
    cached = agent.loaded_models["m0:latest"]
    for number in range(1, 3 * MAX_LOADED):
        lease = room.registry.limiter.take(agent, f"m{number}:latest")
        lease.began()
        lease.release()
    assert len(agent.loaded_models) == MAX_LOADED
    assert cached.gone
    first.release()
    assert agent.loaders == agent.answering == {}


def test_what_is_learned_of_a_hosts_slots_counts_for_its_models_that_have_not_run_yet() -> None:
    room = Room("a", models=("m", "n"))
    agent, placement = room.agents[0], room.registry.learner.placement
    room.registry.inventory.update_loaded(agent, entries("m", "n"))
    for _ in range(3):
        leases = [room.registry.limiter.take(agent, MODEL) for _ in range(agent.slots_for(MODEL))]
        for lease in leases:
            lease.began()
        room.pass_time(5)
        for lease in leases:
            lease.release()
    assert agent.slots_for("n:latest") > 2
    assert placement.use("n:latest").slots == agent.slots_for("n:latest")
    room.registry.limiter.start_over(agent)
    assert placement.use("n:latest").slots == placement.use(MODEL).slots == 2


def test_a_slot_that_is_not_proven_costs_the_wait_that_it_may_mean() -> None:
    room = Room("a", "b")
    for agent in room.agents:
        room.registry.inventory.update_loaded(agent, entries("m"))
        room.serve(agent, output_tokens=200, output_seconds=10.0, prompt_tokens=400, prompt_seconds=0.5)
    first, second = room.agents
    lease = room.registry.limiter.take(first, MODEL)
    lease.began()
    choice = room.scheduler.find(Demand(MODEL))
    assert choice.agent is second
    costs = {option.agent: option for option in choice.options}
    assert costs["b"].wait == 0
    assert costs["a"].wait > 5, "half of an answer of ten seconds, which is slowed: it runs one at once, or two"
    assert costs["a"].free


def test_an_embedding_model_of_which_nothing_is_known_is_not_expected_to_write_answers() -> None:
    room = Room("warm", "cold", models=("m", "embed"), slots=1)
    warm, cold = room.agents
    for agent, model in ((warm, "embed"), (cold, "m")):
        room.registry.inventory.update_loaded(agent, entries(model))
        room.registry.update_metrics(agent.id, report(at=agent.number, max_loaded_models=1))
    embedding = Demand("embed:latest", tokens=100, output_limit=0)
    for _ in range(2):
        choice = room.scheduler.find(embedding)
        assert choice.agent is warm
        lease = room.registry.limiter.take(warm, "embed:latest", embedding)
        assert room.scheduler.find(embedding, ahead=20).agent is None, "twenty of them are soon over"
        lease.release()


def test_a_model_that_was_first_asked_for_embeddings_is_expected_to_write_once_it_is_asked_to() -> None:
    room = Room("a", slots=1)
    [agent] = room.agents
    estimates = room.registry.learner.estimates
    room.registry.limiter.take(agent, MODEL, Demand(MODEL, output_limit=0)).release(Outcome.REJECTED)
    assert estimates.output(MODEL) == 1.0
    room.registry.limiter.take(agent, MODEL, Demand(MODEL)).release(Outcome.CANCELLED)
    assert estimates.output(MODEL) == OUTPUT
    room.serve(agent, output_tokens=300, output_seconds=3.0)
    room.serve(agent, Demand(MODEL, tokens=10, output_limit=0))
    assert estimates.output(MODEL) == pytest.approx(300)


def test_names_that_are_made_up_for_embeddings_keep_no_model_from_being_learned() -> None:
    room = Room("a", slots=1)
    [agent] = room.agents
    for number in range(MAX_MODELS + 100):
        name = f"made-up-{number}:latest"
        room.registry.limiter.take(agent, name, Demand(name, output_limit=0)).release(Outcome.REJECTED)
    room.serve(agent, output_tokens=300, output_seconds=3.0)
    assert room.registry.learner.estimates.output(MODEL) == pytest.approx(300)
