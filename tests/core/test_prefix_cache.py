"""Which agent has a prompt cached, how many it keeps, and that a new one goes where it evicts none that is needed."""

from __future__ import annotations

import math

import pytest

from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import CachedPrompt, LoadedModel, Outcome
from ollama_balancer.core.decision import in_words
from ollama_balancer.core.demand import Demand, Prefix
from ollama_balancer.core.kept_prompts import Shown
from ollama_balancer.core.scoring.follow_ups import PATIENCE, FollowUps
from ollama_balancer.core.scoring.prefix_cache import MAX_PROMPTS, PrefixCache, kept
from tests.core.room import MODEL, Room

LONG = 8000


def first(name: str, tokens: int = LONG) -> Demand:
    """The first prompt of a conversation."""
    return Demand(MODEL, tokens=tokens, new_prefixes=((name.encode(), tokens),))


def follow_up(name: str, tokens: int = LONG) -> Demand:
    return Demand(
        MODEL, tokens=tokens + 100, prefixes=((name.encode(), tokens),), new_prefixes=((name.encode(), tokens),)
    )


def holder(room: Room, *prefixes: Prefix) -> tuple[Agent | None, int]:
    """Who has the longest of these cached."""
    tokens = prefixes[-1][1] if prefixes else 0
    found = room.registry.learner.prefix_cache.find(Demand(MODEL, tokens=tokens, prefixes=prefixes))
    return (found.agent, found.tokens) if found is not None else (None, 0)


def has(room: Room, name: str) -> bool:
    return holder(room, (name.encode(), LONG)) != (None, 0)


def read(room: Room, agent: Agent, demand: Demand, *, tokens: int, speed: float = 1000.0) -> None:
    """The agent answers, and says that it took as long as so many tokens take."""
    room.serve(
        agent,
        demand,
        prompt_tokens=demand.tokens,
        prompt_seconds=tokens / speed,
        output_tokens=20,
        output_seconds=1.0,
    )
    for each in room.agents:
        room.registry.liveness.reached(each)


def test_the_longest_prefix_that_an_agent_has_read_counts() -> None:
    room = Room("a", "b", slots=4)
    a, b = room.agents
    room.serve(a, Demand(MODEL, tokens=10, new_prefixes=((b"system", 10),)))
    room.serve(b, Demand(MODEL, tokens=30, new_prefixes=((b"system, question", 30),)))
    prefixes = (b"system", 10), (b"system, question", 30), (b"system, question, answer, question", 80)
    assert holder(room, *prefixes) == (b, 30)
    assert holder(room, *prefixes[:1]) == (a, 10)
    assert holder(room, (b"another", 50)) == (None, 0)
    assert holder(room) == (None, 0)


def test_who_read_it_last_has_it() -> None:
    room = Room("a", "b", slots=4)
    for agent in room.agents:
        room.serve(agent, first("x"))
    assert holder(room, (b"x", LONG)) == (room.agents[1], LONG)


def test_the_prefix_that_was_not_asked_for_for_longest_makes_room() -> None:
    cache, agent, loaded_model = PrefixCache(lambda model: None, most=2), Room("a", slots=4).agents[0], LoadedModel()

    def read_prompt(name: bytes) -> None:
        prompt = cache.sent(Demand(MODEL, tokens=1), agent, loaded_model, 0.0)
        cache.read(MODEL, [(name, 1)], agent, loaded_model, prompt)

    def knows(name: bytes) -> bool:
        return cache.find(Demand(MODEL, tokens=1, prefixes=((name, 1),))) is not None

    read_prompt(b"1")
    read_prompt(b"2")
    assert knows(b"1")
    read_prompt(b"3")
    assert len(cache) == 2
    assert knows(b"1")
    assert not knows(b"2")


def test_an_agent_that_has_left_has_nothing_cached() -> None:
    room = Room("a", "b", slots=4)
    a, b = room.agents
    room.serve(a, first("1"))
    room.serve(b, first("2"))
    room.registry.remove(a)
    assert not has(room, "1")
    assert has(room, "2")


def test_the_least_recently_used_prompt_is_evicted() -> None:
    room = Room("a", slots=2)
    [agent] = room.agents
    for demand in (first("1"), first("2"), follow_up("1"), first("3")):
        room.serve(agent, demand)
    assert [name for name in "123" if has(room, name)] == ["1", "3"]


def test_a_follow_up_takes_the_place_of_its_own_conversation() -> None:
    room = Room("a", slots=2)
    [agent] = room.agents
    for demand in (first("1"), first("2"), follow_up("2"), follow_up("2")):
        room.serve(agent, demand)
    assert [name for name in "12" if has(room, name)] == ["1", "2"]


def test_a_common_system_prompt_does_not_make_two_conversations_one() -> None:
    room = Room("a", slots=2)
    [agent] = room.agents
    system = (b"system", 500)
    for name in (b"1", b"2"):
        room.serve(agent, Demand(MODEL, tokens=LONG, prefixes=(system,), new_prefixes=(system, (name, LONG))))
    assert [name for name in "12" if has(room, name)] == ["1", "2"]
    room.serve(agent, first("3"))
    assert [name for name in "123" if has(room, name)] == ["2", "3"]


def test_a_prompt_counts_from_when_it_is_sent() -> None:
    room = Room("a", slots=1)
    [agent] = room.agents
    room.serve(agent, first("1"))
    lease = room.registry.limiter.take(agent, MODEL, first("2"))
    assert not has(room, "1"), "the host evicts it as it begins to read"
    assert not has(room, "2"), "it has not been read yet"
    lease.began()
    assert has(room, "2")
    lease.release()


def test_a_turn_that_is_stopped_and_asked_again_stays_with_its_conversation() -> None:
    room = Room("a", "b", slots=2)
    a, _ = room.agents
    room.serve(a, first("1"))
    room.registry.limiter.take(a, MODEL, follow_up("1")).release(Outcome.CANCELLED)
    assert has(room, "1")
    lease = room.registry.limiter.take(a, MODEL, follow_up("1"))
    assert has(room, "1"), "a second request of the conversation, while the first one runs"
    lease.release()


def test_a_question_that_is_edited_stays_with_its_conversation() -> None:
    room = Room("a", slots=2)
    [agent] = room.agents
    room.serve(agent, first("turn 1", 1000))
    prefixes = (b"turn 1", 1000), (b"turn 2", LONG)
    for name, tokens in ((b"turn 2", LONG), (b"turn 3", LONG + 100)):
        room.serve(agent, Demand(MODEL, tokens=tokens, prefixes=prefixes, new_prefixes=((name, tokens),)))
    assert holder(room, *prefixes[:1], (b"turn 2, edited", LONG)) == (agent, 1000)
    assert holder(room, *prefixes, (b"turn 3, edited", LONG + 100)) == (agent, LONG)


def test_a_request_that_succeeds_without_a_byte_has_been_read() -> None:
    room = Room("a", slots=2)
    [agent] = room.agents
    room.serve(agent)
    room.registry.limiter.take(agent, MODEL, first("1")).release(Outcome.SUCCEEDED)
    assert len(agent.loaded_models[MODEL].prompts) == 1


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.FAILED, None])
def test_a_request_that_is_refused_evicts_nothing(outcome: Outcome | None) -> None:
    room = Room("a", slots=2)
    [agent] = room.agents
    room.serve(agent, first("1"))
    for number in range(5):
        room.registry.limiter.take(agent, MODEL, first(f"bad {number}")).release(outcome)
    assert has(room, "1")
    assert len(agent.loaded_models[MODEL].prompts) == 1


def fleet_of_two(turns: int) -> Room:
    """The first agent is twice as fast, both have one slot. They have had many conversations of so many turns."""
    room = Room("fast", "slow", slots=1)
    for number in range(40):
        for agent, speed in zip(room.agents, (2000.0, 1000.0), strict=True):
            name = f"{agent.name} {number}"
            read(room, agent, first(name, 1000), tokens=1000, speed=speed)
            for _ in range(turns - 1):
                read(room, agent, follow_up(name, 1000), tokens=100, speed=speed)
    room.pass_time(300)
    return room


def test_a_new_prompt_goes_where_it_evicts_none_that_is_expected_to_go_on() -> None:
    room = fleet_of_two(turns=3)
    fast, slow = room.agents
    assert room.find(first("1")) is fast
    room.serve(fast, first("1"))
    assert room.find(first("2")) is slow
    assert room.find(follow_up("1")) is fast
    best, other = room.scheduler.find(first("2")).options
    assert best.displacement == 0.0
    assert other.displacement == other.interference > 4.0
    assert in_words((best, other)) == "warm here, next best fast would evict the prompt of another conversation"


def test_a_conversation_that_has_moved_leaves_room() -> None:
    room = fleet_of_two(turns=3)
    fast, slow = room.agents
    room.serve(fast, first("1"))
    assert room.find(first("2")) is slow
    lease = room.registry.limiter.take(slow, MODEL, follow_up("1"))
    best, *_ = room.scheduler.find(first("2")).options
    assert (best.agent, best.displacement) == ("fast", 0.0)
    lease.release()


def test_what_another_choice_costs_is_told_by_what_weighs_most() -> None:
    room = fleet_of_two(turns=3)
    fast, _ = room.agents
    room.serve(fast, first("1", 3000))
    options = room.scheduler.find(first("2", 3000)).options
    [other] = [option for option in options if option.agent == "fast"]
    assert 0 < other.displacement <= other.interference


def test_a_conversation_that_has_paused_for_long_is_not_expected_to_go_on() -> None:
    room = fleet_of_two(turns=3)
    fast, _ = room.agents
    room.serve(fast, first("1"))
    room.pass_time(300)
    assert room.find(first("2")) is fast
    assert has(room, "1")


def test_prompts_that_nobody_follows_up_are_evicted_without_regret() -> None:
    room = fleet_of_two(turns=1)
    fast, _ = room.agents
    room.serve(fast, first("1"))
    assert room.find(first("2")) is fast


def test_a_host_that_keeps_more_prompts_than_it_has_slots_is_found_to_do_so() -> None:
    room = Room("a", slots=1)
    [agent] = room.agents
    for number in range(5):
        read(room, agent, first(f"{number}"), tokens=LONG)
    assert not has(room, "1")
    read(room, agent, follow_up("1"), tokens=100)
    assert kept(agent, MODEL) == 4
    assert [name for name in "01234" if has(room, name)] == ["1", "2", "3", "4"]
    rate = room.registry.learner.estimates.prefill.value(agent.id, MODEL)
    assert rate == pytest.approx(1000), "what was cached says nothing about the speed"


def test_a_host_that_keeps_fewer_prompts_than_it_has_slots_is_found_to_do_so() -> None:
    room = Room("a", slots=4)
    [agent] = room.agents
    for number in range(4):
        read(room, agent, first(f"{number}"), tokens=LONG)
    read(room, agent, follow_up("0"), tokens=LONG)
    assert kept(agent, MODEL) == 4, "once may be chance"
    read(room, agent, follow_up("2"), tokens=LONG)
    assert kept(agent, MODEL) == 3
    read(room, agent, follow_up("2"), tokens=100)
    read(room, agent, follow_up("0"), tokens=LONG)
    assert kept(agent, MODEL) == 2


def test_a_server_that_says_how_much_was_cached_is_believed() -> None:
    room = Room("a", slots=1)
    [agent] = room.agents
    figures = {"prompt_tokens": LONG, "output_tokens": 20, "output_seconds": 1.0}
    for name in ("1", "2"):
        room.serve(agent, first(name), prompt_seconds=8.0, cached_tokens=0, **figures)
    room.serve(agent, follow_up("1"), prompt_seconds=0.2, cached_tokens=LONG - 200, **figures)
    assert kept(agent, MODEL) == 2
    assert room.registry.learner.estimates.prefill.value(agent.id, MODEL) == pytest.approx(1000)


def test_a_chat_that_is_too_long_for_its_context_does_not_show_what_is_kept() -> None:
    room = Room("a", slots=4)
    [agent] = room.agents
    for number in range(5):
        read(room, agent, first(f"{number}", 4000), tokens=4000)
    figures = {"prompt_tokens": 4096, "prompt_seconds": 4.0, "output_tokens": 20, "output_seconds": 1.0}
    for _ in range(4):
        room.serve(agent, follow_up("long", 20_000), **figures)
    assert kept(agent, MODEL) == 4


def test_a_model_that_was_loaded_again_does_not_show_what_is_kept() -> None:
    room = Room("a", known=False)
    [agent] = room.agents
    for number in range(5):
        read(room, agent, first(f"{number}"), tokens=LONG)
    figures = {"prompt_tokens": LONG, "prompt_seconds": LONG / 1000, "output_tokens": 20, "output_seconds": 1.0}
    for _ in range(4):
        room.serve(agent, follow_up("4"), load_seconds=6.0, **figures)
    assert agent.kept_prompts.known() == {}


def test_a_prompt_that_is_read_in_no_time_does_not_show_what_is_kept() -> None:
    room = Room("a", slots=4)
    [agent] = room.agents
    figures = {"prompt_tokens": 430, "output_tokens": 20, "output_seconds": 1.0}
    for number in range(5):
        room.serve(agent, first(f"{number}", 430), prompt_seconds=0.04, **figures)
    for _ in range(4):
        room.serve(agent, follow_up("4", 400), prompt_seconds=0.03, **figures)
    assert kept(agent, MODEL) == 4


def test_estimated_tokens_are_not_taken_for_real_ones() -> None:
    room = Room("a", slots=4)
    [agent] = room.agents
    figures = {"output_tokens": 20, "output_seconds": 1.0, "prompt_seconds": 1.0}
    room.serve(agent, first("1", 4000), prompt_tokens=1000, cached_tokens=0, **figures)
    prompt = Demand(MODEL, tokens=6000, prefixes=((b"1", 4000),), new_prefixes=((b"1", 6000),))
    for _ in range(3):
        room.serve(agent, prompt, prompt_tokens=1500, cached_tokens=1000, **figures)
    assert kept(agent, MODEL) == 4


def test_slots_that_become_known_later_count_for_what_is_kept() -> None:
    room = Room("a")
    [agent] = room.agents
    for _ in range(5):
        read(room, agent, first("1"), tokens=LONG)
    read(room, agent, follow_up("1"), tokens=100)
    room.registry.configure_slots(agent, 8)
    assert kept(agent, MODEL) == 8


def test_what_was_learned_of_kept_prompts_goes_with_the_server() -> None:
    room = Room("a", slots=1)
    [agent] = room.agents
    room.registry.inventory.update_version(agent, "0.29.0")
    agent.kept_prompts.observe(MODEL, 5, 1, cached=True)
    room.registry.inventory.update_version(agent, "0.29.0")
    assert kept(agent, MODEL) == 6
    room.registry.inventory.update_version(agent, "0.30.0")
    assert kept(agent, MODEL) == 1


def test_a_miss_is_disproved_by_a_deeper_hit() -> None:
    shown = Shown()
    for depth, cached in ((1, False), (2, True), (3, False)):
        shown.observe(depth, 4, cached=cached)
        assert shown.kept is None
    shown.observe(2, 4, cached=False)
    assert shown.kept == 3
    shown.observe(9, 4, cached=False)
    assert shown.kept == 3, "that deep nothing was expected"
    for _ in range(3):
        shown.observe(0, 4, cached=False)
    assert shown.kept == 1, "at least the last one is worth a try"


def test_only_so_many_prompts_of_a_loaded_model_are_tracked() -> None:
    room = Room("a", slots=1)
    [agent] = room.agents
    for number in range(MAX_PROMPTS + 10):
        room.serve(agent, first(f"{number}"))
    assert len(agent.loaded_models[MODEL].prompts) == MAX_PROMPTS


def test_follow_ups_are_expected_as_they_came_and_less_and_less_with_time() -> None:
    follow_ups = FollowUps()
    for _ in range(100):
        prompt = CachedPrompt(100, used_at=0.0)
        follow_ups.count_prompt(prompt)
        follow_ups.count_follow_up(prompt, 20.0)
        last = CachedPrompt(100, used_at=20.0, turns=1)
        follow_ups.count_prompt(last)
    begun, later = CachedPrompt(100, 0.0, awaited=True), CachedPrompt(100, 0.0, turns=1, awaited=True)
    now, until = follow_ups.expected(begun, 0.0)
    assert now > 10
    assert 20 < until < 30, "the usual pause, which was assumed to be longer"
    assert follow_ups.expected(begun, until - 0.1) == (now, until)
    assert follow_ups.expected(later, 0.0)[0] < 0.1
    fewer, longer = follow_ups.expected(begun, until)
    assert fewer == pytest.approx(now / math.e)
    assert longer == 2 * until
    assert follow_ups.expected(begun, PATIENCE * until) == (0.0, math.inf)
    assert follow_ups.expected(CachedPrompt(100, 0.0), 0.0) == (0.0, math.inf)
