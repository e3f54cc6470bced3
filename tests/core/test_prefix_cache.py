"""Which agent has a prompt cached, how many it keeps, and that a new one goes where it evicts none that is needed."""

from __future__ import annotations

import math

import pytest

from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import MAX_PROMPTS, CachedPrompt, KeptPrompts, LoadedModel
from ollama_balancer.core.decision import in_words
from ollama_balancer.core.demand import Demand, Prefix
from ollama_balancer.core.scoring.follow_ups import PATIENCE, FollowUps
from ollama_balancer.core.scoring.prefix_cache import PrefixCache
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


def fleet_of_two(turns: int) -> Room:
    """The first agent is twice as fast, both have one slot. They have had many conversations of so many turns."""
    room = Room("fast", "slow", slots=1)
    for number in range(20):
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
    assert (best.displaced, other.displaced) == (0, LONG)
    assert other.interference > 4.0
    assert in_words((best, other)) == "warm here, next best fast would evict the prompt of another conversation"


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
    assert agent.prompts_kept(MODEL) == 4
    assert [name for name in "01234" if has(room, name)] == ["1", "2", "3", "4"]
    rate = room.registry.learner.estimates.prefill.value(agent.id, MODEL)
    assert rate == pytest.approx(1000), "what was cached says nothing about the speed"


def test_a_host_that_keeps_fewer_prompts_than_it_has_slots_is_found_to_do_so() -> None:
    room = Room("a", slots=4)
    [agent] = room.agents
    for number in range(4):
        read(room, agent, first(f"{number}"), tokens=LONG)
    read(room, agent, follow_up("0"), tokens=LONG)
    assert agent.prompts_kept(MODEL) == 4, "once may be chance"
    read(room, agent, follow_up("2"), tokens=LONG)
    assert agent.prompts_kept(MODEL) == 3
    read(room, agent, follow_up("2"), tokens=100)
    read(room, agent, follow_up("0"), tokens=LONG)
    assert agent.prompts_kept(MODEL) == 2


def test_a_server_that_says_how_much_was_cached_is_believed() -> None:
    room = Room("a", slots=1)
    [agent] = room.agents
    figures = {"prompt_tokens": LONG, "output_tokens": 20, "output_seconds": 1.0}
    for name in ("1", "2"):
        room.serve(agent, first(name), prompt_seconds=8.0, cached_tokens=0, **figures)
    room.serve(agent, follow_up("1"), prompt_seconds=0.2, cached_tokens=LONG - 200, **figures)
    assert agent.prompts_kept(MODEL) == 2
    assert room.registry.learner.estimates.prefill.value(agent.id, MODEL) == pytest.approx(1000)


def test_what_was_learned_of_kept_prompts_goes_with_the_server() -> None:
    room = Room("a", slots=1)
    [agent] = room.agents
    room.registry.inventory.update_version(agent, "0.29.0")
    agent.prompt_met_again(MODEL, 5, cached=True)
    room.registry.inventory.update_version(agent, "0.29.0")
    assert agent.prompts_kept(MODEL) == 6
    room.registry.inventory.update_version(agent, "0.30.0")
    assert agent.prompts_kept(MODEL) == 1


def test_a_miss_is_disproved_by_a_deeper_hit() -> None:
    kept = KeptPrompts(4)
    kept.observe(1, cached=False)
    kept.observe(2, cached=True)
    kept.observe(3, cached=False)
    assert kept.most == 4
    kept.observe(2, cached=False)
    assert kept.most == 3
    kept.observe(9, cached=False)
    assert kept.most == 3, "that deep nothing was expected"


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
        follow_ups.awaited(prompt)
        follow_ups.came(prompt, 20.0)
        last = CachedPrompt(100, used_at=20.0, turns=1)
        follow_ups.awaited(last)
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
