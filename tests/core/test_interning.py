"""What entries of models have in common is there once."""

from typing import Any

from agent_reporter.wire import ModelEntry
from ollama_balancer.core import inventory as sharing
from ollama_balancer.core.inventory import ModelInterner


def entry(**fields: Any) -> ModelEntry:
    details = {"family": "llama", "families": ["llama"]}
    return ModelEntry.model_validate({"name": "tiny:latest", "digest": "d" * 64, "details": details} | fields)


def extra(of: ModelEntry) -> dict[str, Any]:
    assert of.model_extra is not None
    return of.model_extra


def test_equal_parts_of_two_hosts_entries_are_one() -> None:
    shared, first, second = ModelInterner(), entry(modified_at="monday"), entry(modified_at="tuesday")
    before = second.model_dump()
    assert shared.intern(first) is first
    second = shared.intern(second)
    assert second.model_dump() == before
    assert extra(second)["details"] is extra(first)["details"]
    assert second.name is first.name
    assert second.model_fields_set is first.model_fields_set
    assert second.model_fields_set == {"name", "digest", "details", "modified_at"}


def test_what_differs_stays_as_it_is() -> None:
    shared = ModelInterner()
    shared.intern(entry(size=1))
    for other in (
        entry(size=True),
        entry(size=1.0),
        entry(size=2),
        entry(details={}),
        entry(digest="e"),
        entry(digest=1),
        entry(cls=1, self=2, values=3, _fields_set=4, model_extra=5),
        entry(cls=1, self=2, values=3, _fields_set=4, model_extra=6),
    ):
        before = other.model_dump_json()
        assert shared.intern(other).model_dump_json() == before


def test_however_many_models_hosts_name_what_is_kept_of_them_has_an_end() -> None:
    shared = ModelInterner()
    for number in range(3 * sharing.MAX_INTERNED):
        shared.intern(entry(digest=str(number)))
    assert len(shared._known) <= sharing.MAX_INTERNED
