from __future__ import annotations

import pytest

from ollama_balancer.core.agent import Agent, Source
from ollama_balancer.core.liveness import PROBE_GRACE
from ollama_balancer.core.policies import DEFAULT_POLICY, POLICIES
from ollama_balancer.core.pools import MAX_POOLS
from ollama_balancer.core.registry import AgentRegistry
from tests.core.fakes import Clock, address, entries, fleet, new_registry, report


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> AgentRegistry:
    return new_registry(clock)


def in_turn(registry: AgentRegistry, count: int, model: str | None = None) -> list[str]:
    """The names of the agents that the metrics chose, without requests being sent."""
    chosen = [registry.select_agent_by_metrics(model) for _ in range(count)]
    return [agent.name if agent else "-" for agent in chosen]


# The score


@pytest.mark.parametrize(
    ("cpu", "memory", "active", "score"),
    [(0, 0, 0, 0), (45.5, 60.2, 3, 135.7), (100, 100, 0, 200), (0, 0, 12, 120), (0.1, 0.2, 1, 10.3)],
)
def test_score_is_cpu_plus_memory_plus_ten_for_each_active_request(
    registry: AgentRegistry, cpu: float, memory: float, active: int, score: float
) -> None:
    [agent] = fleet(registry, "a")
    registry.update_metrics("a", report(cpu, memory, active))
    assert agent.score == score


def test_requests_in_flight_count_where_the_report_knows_of_fewer(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    registry.update_metrics("a", report(10, 20, 2))
    leases = [registry.limiter.take(agent) for _ in range(3)]
    assert (agent.active_requests, agent.score) == (3, 60)
    for lease in leases:
        lease.release()
    assert (agent.active_requests, agent.score) == (2, 50)


def test_there_is_no_score_without_fresh_metrics(registry: AgentRegistry, clock: Clock) -> None:
    [agent] = fleet(registry, "a")
    assert agent.score is None
    registry.update_metrics("a", report())
    clock.now += 30
    registry.get("a")
    assert agent.score is None


def test_lowest_score_wins(registry: AgentRegistry) -> None:
    _, b, _ = fleet(registry, "a", "b", "c")
    registry.update_metrics("a", report(50, 50))
    registry.update_metrics("b", report(20, 30))
    registry.update_metrics("c", report(20, 30.1))
    assert registry.select_agent_by_metrics() is b


def test_a_burst_between_two_reports_spreads_by_what_is_in_flight(registry: AgentRegistry) -> None:
    agents = fleet(registry, "a", "b")
    registry.update_metrics("a", report(10, 20))
    registry.update_metrics("b", report(10, 40))
    for _ in range(6):
        agent = registry.select_agent_by_metrics()
        assert agent
        registry.limiter.take(agent)
    assert [agent.in_flight for agent in agents] == [4, 2]


def test_equal_scores_take_turns(registry: AgentRegistry) -> None:
    fleet(registry, "a", "b", "c", "d")
    for name in "abc":
        registry.update_metrics(name, report(10, 20))
    registry.update_metrics("d", report(11, 20))
    assert in_turn(registry, 6) == ["a", "b", "c", "a", "b", "c"]


# Where the score says nothing


def test_one_hot_agent_of_three_is_judged_by_its_score_like_the_others(registry: AgentRegistry) -> None:
    fleet(registry, "a", "b", "c")
    registry.update_metrics("a", report(90, 5))
    registry.update_metrics("b", report(60, 50))
    registry.update_metrics("c", report(50, 50))
    assert in_turn(registry, 3) == ["a", "a", "a"]
    registry.update_metrics("a", report(90, 50))
    assert in_turn(registry, 3) == ["c", "c", "c"]


def test_all_agents_over_80_percent_cpu_get_their_turn(registry: AgentRegistry) -> None:
    fleet(registry, "a", "b", "c")
    for name, memory in (("a", 10), ("b", 20), ("c", 30)):
        registry.update_metrics(name, report(95, memory))
    assert in_turn(registry, 6) == ["a", "b", "c", "a", "b", "c"]


def test_80_percent_is_not_over_80_percent(registry: AgentRegistry) -> None:
    fleet(registry, "a", "b")
    registry.update_metrics("a", report(95, 0))
    registry.update_metrics("b", report(80, 10))
    assert in_turn(registry, 2) == ["b", "b"]
    registry.update_metrics("b", report(80.1, 10))
    assert in_turn(registry, 2) == ["a", "b"]


def test_agents_get_their_turn_while_nobody_has_reported(registry: AgentRegistry) -> None:
    fleet(registry, "a", "b", "c")
    assert in_turn(registry, 6) == ["a", "b", "c", "a", "b", "c"]


def test_agent_without_fresh_metrics_comes_last(registry: AgentRegistry, clock: Clock) -> None:
    a, b, c = fleet(registry, "a", "b", "c")
    registry.update_metrics("a", report(1, 1))
    clock.now += 25
    registry.update_metrics("b", report(50, 50))
    registry.update_metrics("c", report(60, 50))
    clock.now += 5
    registry.liveness.reached(a)  # it still answers
    assert in_turn(registry, 2) == ["b", "b"]
    assert registry.select_agent_by_metrics(None, [b, c]) is a


def test_a_stale_agent_has_its_turn_where_the_fresh_ones_are_all_hot(registry: AgentRegistry) -> None:
    fleet(registry, "a", "b")
    registry.update_metrics("b", report(95, 0))
    assert in_turn(registry, 4) == ["a", "b", "a", "b"]


def test_hot_or_not_is_judged_among_those_that_have_not_been_tried(registry: AgentRegistry) -> None:
    a, _, _ = fleet(registry, "a", "b", "c")
    registry.update_metrics("a", report(10, 10))
    registry.update_metrics("b", report(95, 10))
    registry.update_metrics("c", report(95, 50))
    chosen = [registry.select_agent_by_metrics(None, [a]) for _ in range(4)]
    assert [agent.name for agent in chosen if agent] == ["b", "c", "b", "c"]


# Round robin and least requests


def test_round_robin_gives_each_of_three_agents_three_of_nine(registry: AgentRegistry) -> None:
    fleet(registry, "a", "b", "c")
    chosen = [registry.select_agent() for _ in range(9)]
    assert [agent.name for agent in chosen if agent] == ["a", "b", "c"] * 3


def test_round_robin_goes_on_by_index_modulo_online_when_one_goes_offline(registry: AgentRegistry) -> None:
    a, b, c = fleet(registry, "a", "b", "c")
    assert [registry.select_agent() for _ in range(4)] == [a, b, c, a]
    registry.liveness.unreachable(c, "refused")
    online = [a, b]
    assert [registry.select_agent() for _ in range(4)] == [online[index % 2] for index in range(4, 8)]
    registry.liveness.reached(c)
    online = [a, b, c]
    assert [registry.select_agent() for _ in range(4)] == [online[index % 3] for index in range(8, 12)]


def test_least_requests_takes_the_agent_with_the_fewest_in_flight(clock: Clock) -> None:
    registry = new_registry(clock, mode="least_requests")
    a, b, c = fleet(registry, "a", "b", "c")
    leases = {agent: registry.limiter.take(agent) for agent in (a, b)}
    assert registry.selection.select() is c
    registry.limiter.take(c)
    registry.limiter.take(c)
    assert [registry.selection.select() for _ in range(4)] == [a, b, a, b]
    leases[b].release()
    assert registry.selection.select() is b


def test_select_follows_the_mode(registry: AgentRegistry) -> None:
    a, b = fleet(registry, "a", "b")
    registry.update_metrics("a", report(50, 50))
    registry.update_metrics("b", report(10, 10))
    assert registry.mode == DEFAULT_POLICY == "adaptive"
    registry.mode = "metrics"
    assert [registry.selection.select() for _ in range(2)] == [b, b]
    registry.mode = "roundrobin"
    assert [registry.selection.select() for _ in range(2)] == [a, b]
    registry.limiter.take(a)
    registry.mode = "least_requests"
    assert [registry.selection.select() for _ in range(2)] == [b, b]


def test_an_unknown_mode_is_a_key_error_and_changes_nothing(registry: AgentRegistry) -> None:
    with pytest.raises(KeyError):
        registry.mode = "fastest"
    assert registry.mode == DEFAULT_POLICY


@pytest.mark.parametrize("mode", POLICIES)
def test_every_policy_says_why_in_one_line(clock: Clock, mode: str) -> None:
    registry = new_registry(clock, mode=mode)
    fleet(registry, "a")
    for metrics in (None, report(10, 20), report(95, 20)):
        if metrics is not None:
            registry.update_metrics("a", metrics)
        agent = registry.selection.select()
        assert agent
        assert registry.selection.policy.why(agent).isprintable()


def test_the_metrics_policy_names_the_score_and_what_stands_against_it(registry: AgentRegistry) -> None:
    registry.mode = "metrics"
    [agent] = fleet(registry, "a")
    why = registry.selection.policy.why
    assert why(agent) == "round robin: no fresh metrics"
    registry.update_metrics("a", report(95, 20))
    assert why(agent) == "round robin: CPU over 80 %, score 115"
    registry.update_metrics("a", report(10.5, 20, 1))
    assert why(agent) == "score 40.5"


# Models


def test_only_agents_that_have_the_model_are_chosen(registry: AgentRegistry) -> None:
    _, b, c = fleet(registry, "a", "b", "c")
    registry.inventory.update_models(b, entries("M", "library/other:7b"))
    registry.inventory.update_models(c, entries("other:7b"))
    assert [registry.select_agent("other:7b") for _ in range(4)] == [b, c, b, c]
    assert registry.select_agent("nope:latest") is None
    registry.inventory.update_models(b, entries("m"))
    assert [registry.select_agent("other:7b") for _ in range(2)] == [c, c]


def test_agents_whose_models_are_not_known_come_after_those_that_have_the_model(registry: AgentRegistry) -> None:
    holder, other = fleet(registry, "holder", "other")
    unknown, _ = registry.register("unknown", address(9))
    registry.liveness.reached(unknown)
    assert registry.inventory.may_have_unknown_models()
    assert {registry.select_agent_by_metrics("m:latest") for _ in range(4)} == {holder, other}
    registry.liveness.unreachable(holder, "refused")
    registry.inventory.update_models(other, entries("else"))
    assert registry.select_agent_by_metrics("m:latest") is unknown
    assert registry.select_agent_by_metrics("m:latest", [unknown]) is None


def test_an_agent_with_no_models_at_all_is_not_one_whose_models_are_unknown(registry: AgentRegistry) -> None:
    agent, _ = registry.register("a", address(1))
    registry.liveness.reached(agent)
    assert registry.selection.select("m:latest") is agent
    registry.inventory.update_models(agent, [])
    assert not registry.inventory.may_have_unknown_models()
    assert registry.selection.select("m:latest") is None
    assert registry.selection.select() is agent


def test_models_are_known_even_of_an_agent_that_is_offline(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    registry.liveness.unreachable(agent, "refused")
    assert registry.inventory.has_model("m:latest")
    registry.remove(agent)
    assert not registry.inventory.has_model("m:latest")


def test_a_new_list_of_the_same_names_refreshes_what_is_shown_of_them(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    entry = entries("m")[0].model_copy(update={"size": 5})
    registry.inventory.update_models(agent, [entry])
    assert agent.models == {"m:latest": entry}
    assert registry.selection.select("m:latest") is agent


def test_pools_are_bounded_and_choosing_goes_on_beyond_their_number(registry: AgentRegistry, clock: Clock) -> None:
    names = [f"m{number}:latest" for number in range(MAX_POOLS + 50)]
    a, b = fleet(registry, "a", "b")
    registry.inventory.update_models(a, entries(*names))
    registry.inventory.update_models(b, entries(*names))
    for model in names:
        clock.now += 0.001
        assert registry.selection.select(model) in (a, b)
    assert len(a.pools) == len(a.boards) <= MAX_POOLS
    # The one not asked for longest made room, and is made anew when it is asked for again.
    assert {registry.selection.select(names[0]), registry.selection.select(names[0])} == {a, b}
    assert len(a.pools) <= MAX_POOLS
    registry.remove(a)
    assert len(a.pools) == 0
    assert registry.selection.select(names[0]) is b


def test_models_that_nobody_has_make_no_pools(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    for number in range(1000):
        assert registry.selection.select(f"nope{number}:latest") is None
    # The one of agents whose models are unknown has no members, so that none is left.
    assert agent.pools == []


# Excluding and going away


def test_nobody_is_chosen_where_all_are_excluded(registry: AgentRegistry) -> None:
    agents = fleet(registry, "a", "b")
    for mode in POLICIES:
        registry.mode = mode
        assert registry.selection.select(None, agents) is None
        assert registry.selection.select("m:latest", agents) is None
        assert registry.selection.select(None, agents[:1]) is agents[1]


def test_an_empty_fleet_has_nobody_to_choose(registry: AgentRegistry) -> None:
    for mode in POLICIES:
        registry.mode = mode
        assert registry.selection.select() is None
        assert registry.selection.select("m:latest") is None


def test_a_silent_agent_is_not_chosen_once_its_probe_has_run_out(registry: AgentRegistry, clock: Clock) -> None:
    a, b = fleet(registry, "a", "b")
    clock.now += PROBE_GRACE - 0.5
    registry.liveness.reached(b)
    assert {registry.select_agent() for _ in range(2)} == {a, b}
    clock.now += 0.5
    assert {registry.select_agent() for _ in range(2)} == {b}


@pytest.mark.chaos
def test_a_fleet_of_a_thousand_is_chosen_from_as_exactly_as_one_of_three(registry: AgentRegistry) -> None:
    agents: list[Agent] = []
    for number in range(1000):
        agent, _ = registry.register(f"a{number}", address(1), Source.STATIC)
        registry.update_metrics(agent.id, report((number * 37 % 1000) / 10, 20))
        agents.append(agent)
    for _ in range(2000):
        agent_or_none = registry.select_agent_by_metrics()
        assert agent_or_none
        assert agent_or_none.score == min(agent.score or 0 for agent in agents)
        registry.limiter.take(agent_or_none)
