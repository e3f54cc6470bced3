from __future__ import annotations

import json

from agent_reporter.wire import ModelEntry
from ollama_balancer.fleet.registry import AgentRegistry
from ollama_balancer.ollama import merging
from tests.fleet.fakes import Clock, fleet

OLD, NEW = "2026-11-23T18:50:48.263151753Z", "2026-11-23T20:00:00.5+01:00"


def model(name: str, modified_at: object = OLD, **more: object) -> ModelEntry:
    return ModelEntry.model_validate({"name": name, "modified_at": modified_at} | more)


def test_each_model_is_listed_once_with_the_newest_entry_and_all_its_fields() -> None:
    registry = AgentRegistry(Clock())
    a, b = fleet(registry, "a", "b")
    registry.update_models(a, [model("X:latest", OLD, size=1), model("y:latest", OLD, details={"family": "f"})])
    registry.update_models(b, [model("x:latest", NEW, size=2)])
    assert merging.tags([a, b]) == {
        "models": [
            {"name": "x:latest", "modified_at": NEW, "size": 2},
            {"name": "y:latest", "modified_at": OLD, "details": {"family": "f"}},
        ]
    }
    assert merging.tags([b, a]) == merging.tags([a, b])


def test_openai_models_are_made_from_the_same_entries() -> None:
    registry = AgentRegistry(Clock())
    [a] = fleet(registry, "a")
    registry.update_models(a, [model("tiny-a:latest")])
    assert merging.openai_models([a]) == {
        "object": "list",
        "data": [{"id": "tiny-a:latest", "object": "model", "created": 1795459848, "owned_by": "library"}],
    }


def test_loaded_models_are_listed_for_each_agent_that_has_them_loaded() -> None:
    registry = AgentRegistry(Clock())
    a, b = fleet(registry, "a", "b")
    a.loaded = [model("x:latest", size_vram=5)]
    b.loaded = [model("x:latest", size_vram=6)]
    assert [(entry["agent"], entry["name"], entry["size_vram"]) for entry in merging.running([a, b])["models"]] == [
        ("a", "x:latest", 5),
        ("b", "x:latest", 6),
    ]


def test_times_that_cannot_be_read_are_the_oldest_and_no_error() -> None:
    registry = AgentRegistry(Clock())
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
    registry.update_models(a, [model(f"m{n}", value) for n, value in enumerate(odd)])
    listed = merging.tags([a])["models"]
    assert len(listed) == len(odd)
    assert listed[0]["name"] == "m7"
    json.dumps(merging.openai_models([a]), allow_nan=False)


def test_figures_that_are_no_json_are_listed_as_null() -> None:
    registry = AgentRegistry(Clock())
    [a] = fleet(registry, "a")
    registry.update_models(a, [ModelEntry.model_validate_json(b'{"name": "m", "size": NaN, "x": [Infinity]}')])
    assert json.loads(json.dumps(merging.tags([a]), allow_nan=False)) == {
        "models": [{"name": "m", "size": None, "x": [None]}]
    }


def test_an_empty_fleet_lists_nothing() -> None:
    assert merging.tags([]) == merging.running([]) == {"models": []}
    assert merging.openai_models([]) == {"object": "list", "data": []}
