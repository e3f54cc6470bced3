from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_reporter.wire import ModelEntry
from ollama_balancer.core.liveness import PROBE_GRACE
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.gateway.merging import MergedFleet
from ollama_balancer.gateway.running_models import MAX_AGENTS_SHOWN
from tests.core.fakes import Clock, entries, fleet, new_registry

OLD, NEW = "2026-11-23T18:50:48.263151753Z", "2026-11-23T20:00:00.5+01:00"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> AgentRegistry:
    return new_registry(clock)


@pytest.fixture
def merged(registry: AgentRegistry) -> MergedFleet:
    return MergedFleet(registry)


def model(name: str, modified_at: object = OLD, **more: object) -> ModelEntry:
    return ModelEntry.model_validate({"name": name, "modified_at": modified_at} | more)


def models(answer: bytes) -> list[dict[str, Any]]:
    value = json.loads(answer, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert list(value) == ["models"]
    listed: list[dict[str, Any]] = value["models"]
    return listed


def names(answer: bytes) -> list[str]:
    return [entry["name"] for entry in models(answer)]


def test_each_model_is_listed_once_with_the_newest_entry_and_all_its_fields(
    registry: AgentRegistry, merged: MergedFleet
) -> None:
    a, b = fleet(registry, "a", "b")
    registry.inventory.update_models(
        a, [model("X:latest", OLD, size=1), model("y:latest", OLD, details={"family": "f"})]
    )
    registry.inventory.update_models(b, [model("x:latest", NEW, size=2)])
    assert models(merged.tags()) == [
        {"name": "x:latest", "modified_at": NEW, "size": 2},
        {"name": "y:latest", "modified_at": OLD, "details": {"family": "f"}},
    ]


def test_agents_that_have_different_builds_of_a_model_are_shown(registry: AgentRegistry, merged: MergedFleet) -> None:
    a, b, c = fleet(registry, "a", "b", "c")
    registry.inventory.update_models(a, [model("x", OLD, digest="1"), model("y", OLD, digest="9")])
    registry.inventory.update_models(b, [model("x", NEW, digest="2"), model("y", NEW, digest="9")])
    registry.inventory.update_models(c, [model("x", OLD, digest="1")])
    x, y = models(merged.tags())
    assert (x["digest"], x["balancer"]) == ("2", {"digests": {"1": ["a", "c"], "2": ["b"]}})
    assert "balancer" not in y
    registry.inventory.update_models(b, [model("x", NEW, digest="1"), model("y", NEW, digest="9")])
    assert "balancer" not in models(merged.tags())[0]


def test_of_many_agents_with_different_builds_some_are_named(registry: AgentRegistry, merged: MergedFleet) -> None:
    agents = fleet(registry, *(f"a{n}" for n in range(MAX_AGENTS_SHOWN + 5)))
    for n, agent in enumerate(agents):
        registry.inventory.update_models(agent, [model("x", digest="1" if n else "2")])
    digests = models(merged.tags())[0]["balancer"]["digests"]
    assert len(digests["1"]) == MAX_AGENTS_SHOWN + 1
    assert digests["1"][-1] == "and 4 more"


def test_openai_models_are_made_from_the_same_entries(registry: AgentRegistry, merged: MergedFleet) -> None:
    [a] = fleet(registry, "a")
    registry.inventory.update_models(a, [model("tiny-a:latest")])
    assert json.loads(merged.openai_models()) == {
        "object": "list",
        "data": [{"id": "tiny-a:latest", "object": "model", "created": 1795459848, "owned_by": "library"}],
    }


def test_a_model_loaded_on_several_agents_is_one_entry_that_adds_them_up(
    registry: AgentRegistry, merged: MergedFleet
) -> None:
    a, b = fleet(registry, "a", "b")
    soon, late = "2026-01-01T10:00:00.123456789+01:00", "2026-01-01T09:30:00Z"
    of_a = {"size": 5, "size_vram": 4, "context_length": 4096, "expires_at": soon}
    of_b = {"size": 6, "size_vram": 6, "context_length": 8192, "expires_at": late}
    registry.inventory.update_loaded(
        a, [model("x:latest", digest="1", **of_a), model("y", digest="2", expires_at="2026-01-02")]
    )
    registry.inventory.update_loaded(b, [model("x", digest="1", **of_b)])
    y, x = models(merged.running())
    assert (y["name"], y["agent"]) == ("y", "a")
    assert "balancer" not in y
    assert x == {
        **model("x", digest="1").model_dump(),
        "size": 11,
        "size_vram": 10,
        "context_length": 4096,
        "expires_at": late,
        "agent": "a, b",
        "balancer": {"agents": [{"agent": "a", **of_a}, {"agent": "b", **of_b}]},
    }
    registry.inventory.update_loaded(a, [])
    [x] = models(merged.running())
    assert (x["agent"], x["size"], "balancer" in x) == ("b", 6, False)


def test_builds_of_one_name_that_are_loaded_are_told_apart_by_their_digests(
    registry: AgentRegistry, merged: MergedFleet
) -> None:
    a, b = fleet(registry, "a", "b")
    registry.inventory.update_loaded(a, [model("x", digest="1")])
    registry.inventory.update_loaded(b, [model("x", digest="2")])
    assert [(entry["agent"], entry["digest"]) for entry in models(merged.running())] == [("a", "1"), ("b", "2")]


def test_of_many_agents_with_a_model_loaded_some_are_named_and_no_figure_breaks_the_list(
    registry: AgentRegistry, merged: MergedFleet
) -> None:
    for n, agent in enumerate(fleet(registry, *(f"a{n}" for n in range(MAX_AGENTS_SHOWN + 5)))):
        odd: list[object] = [None, "1", True, [], 7]
        registry.inventory.update_loaded(
            agent, [model("x", size=odd[n % 5], expires_at=odd[n % 5], context_length=odd[n % 5])]
        )
    [x] = models(merged.running())
    assert x["agent"].endswith(", a19, and 5 more")
    assert len(x["balancer"]["agents"]) == MAX_AGENTS_SHOWN
    assert (x["size"], x["context_length"]) == (35, 7)


def test_lists_follow_agents_that_come_and_go(registry: AgentRegistry, merged: MergedFleet, clock: Clock) -> None:
    a, b = fleet(registry, "a", "b")
    registry.inventory.update_models(b, entries("n"))
    registry.inventory.update_loaded(b, entries("n"))
    assert names(merged.tags()) == ["m", "n"]
    registry.liveness.unreachable(b, "refused")
    assert (names(merged.tags()), models(merged.running())) == (["m"], [])
    registry.liveness.reached(b)
    assert (names(merged.tags()), names(merged.running())) == (["m", "n"], ["n"])
    registry.remove(b)
    assert names(merged.tags()) == ["m"]
    clock.now += PROBE_GRACE
    assert merged.tags() == b'{"models":[]}'
    assert not a.online


def test_what_has_not_changed_is_not_made_again(registry: AgentRegistry, merged: MergedFleet) -> None:
    [a] = fleet(registry, "a")
    registry.inventory.update_models(a, [model("x", size=1)])
    first = merged.tags()
    registry.inventory.update_models(a, [model("x", size=1)])
    assert merged.tags() is first
    registry.inventory.update_models(a, [model("x", size=2)])
    assert models(merged.tags())[0]["size"] == 2


@pytest.mark.parametrize(
    ("versions", "lowest"),
    [
        (["0.9.0", "0.33.0"], "0.9.0"),
        (["0.33.0", "0.33.0-rc2"], "0.33.0-rc2"),
        (["0.33.1-rc1", "0.33.0"], "0.33.0"),
        (["1", "0.0.0"], "0.0.0"),
        (["x", "0.1"], "x"),
    ],
)
def test_the_version_is_the_lowest(
    registry: AgentRegistry, merged: MergedFleet, versions: list[str], lowest: str
) -> None:
    assert merged.version() is None
    for agent, version in zip(fleet(registry, "a", "b"), versions, strict=True):
        registry.inventory.update_version(agent, version)
    assert json.loads(merged.version() or b"") == {"version": lowest}


def test_times_that_cannot_be_read_are_the_oldest_and_no_error(registry: AgentRegistry, merged: MergedFleet) -> None:
    [a] = fleet(registry, "a")
    odd: list[object] = [
        None,
        "",
        "x",
        5,
        [],
        "2026-01-01T00:00:00",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
    ]
    registry.inventory.update_models(a, [model(f"m{n}", value) for n, value in enumerate(odd)])
    listed = names(merged.tags())
    assert len(listed) == len(odd)
    assert listed[:2] == ["m7", "m5"]
    json.loads(merged.openai_models())


def test_figures_that_are_no_json_are_listed_as_null(registry: AgentRegistry, merged: MergedFleet) -> None:
    [a] = fleet(registry, "a")
    registry.inventory.update_models(
        a, [ModelEntry.model_validate_json(b'{"name": "m", "size": NaN, "x": [Infinity]}')]
    )
    assert models(merged.tags()) == [{"name": "m", "size": None, "x": [None]}]


def test_an_empty_fleet_lists_nothing(merged: MergedFleet) -> None:
    assert merged.tags() == merged.running() == b'{"models":[]}'
    assert json.loads(merged.openai_models()) == {"object": "list", "data": []}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["update", "lose", "find", "forget", "ask"]),
            st.integers(0, 3),
            st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from([OLD, NEW]), st.integers(1, 2)), max_size=3),
        ),
        max_size=40,
    )
)
def test_the_list_is_always_that_of_a_merge_from_scratch(
    steps: list[tuple[str, int, list[tuple[str, str, int]]]],
) -> None:
    registry = new_registry(Clock())
    agents = fleet(registry, "a", "b", "c", "d")
    merged = MergedFleet(registry)
    for what, which, listed in steps:
        agent = agents[which]
        match what:
            case "update":
                registry.inventory.update_models(
                    agent, [model(name, at, digest=str(digest)) for name, at, digest in listed]
                )
            case "lose":
                registry.liveness.unreachable(agent, "refused")
            case "find":
                registry.liveness.reached(agent)
            case "forget":
                registry.inventory.forget_model(agent, "x:latest")
            case _:
                merged.tags()
    fresh = new_registry(Clock())
    for agent, other in zip(agents, fleet(fresh, "a", "b", "c", "d"), strict=True):
        fresh.inventory.update_models(other, list((agent.models or {}).values()))
        if not agent.online:
            fresh.liveness.unreachable(other, "refused")
    got, wanted = models(merged.tags()), models(MergedFleet(fresh).tags())
    for entry in got + wanted:
        for holders in entry.get("balancer", {}).get("digests", {}).values():
            holders.sort()  # in the order in which they got the model
    assert {entry["name"]: (entry.get("modified_at"), entry.get("balancer")) for entry in got} == {
        entry["name"]: (entry.get("modified_at"), entry.get("balancer")) for entry in wanted
    }
    assert len(got) == len(wanted)
