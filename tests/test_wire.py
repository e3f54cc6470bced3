from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from agent_reporter.wire import AgentMetrics, AgentRegistration, describe

LEAST: dict[str, Any] = {
    "cpu_usage": 12.5,
    "memory_usage": 40,
    "active_requests": 3,
    "timestamp": "2026-01-31T12:00:00Z",
}

# RFC 3339 knows offsets of whole minutes; the calendar has to hold the time in UTC too.
zones = st.integers(-12 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.datetimes(datetime(1000, 1, 1), datetime(9000, 1, 1), timezones=zones)
percents = st.floats(0, 100)
amounts = st.floats(0, 1e300)
counts = st.integers(0, 2**53)
texts = st.text(max_size=256)
models = st.lists(
    st.fixed_dictionaries({"name": st.text(min_size=1, max_size=512)}, optional={"size": counts, "digest": texts}),
    max_size=3,
)
gpus = st.lists(
    st.fixed_dictionaries(
        {"name": texts},
        optional={
            "utilization": st.none() | percents,
            "memory_used": st.none() | counts,
            "memory_total": st.none() | counts,
            "temperature": st.none() | st.floats(-50, 200),
            "power": st.none() | amounts,
        },
    ),
    max_size=3,
)
reports = st.fixed_dictionaries(
    {
        "cpu_usage": percents,
        "memory_usage": percents,
        "active_requests": counts,
        "timestamp": times,
    },
    optional={
        "agent_id": texts,
        "avg_response_time": st.none() | amounts,
        "models": st.none() | models,
        "loaded_models": st.none() | models,
        "gpus": st.none() | gpus,
        "ollama_version": st.none() | texts,
        "num_parallel": st.none() | st.integers(1, 100_000),
        "max_loaded_models": st.none() | st.integers(0, 100_000),
        "ollama_ok": st.none() | st.booleans(),
    },
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(reports)
def test_a_report_survives_json(fields: dict[str, Any]) -> None:
    metrics = AgentMetrics(**fields)
    again = AgentMetrics.model_validate_json(metrics.model_dump_json())
    assert again == metrics
    assert again.model_dump(include=fields.keys() - {"gpus"}, exclude_unset=True) == {
        name: value for name, value in fields.items() if name != "gpus"
    }


def parse(**changes: Any) -> AgentMetrics:
    return AgentMetrics.model_validate_json(json.dumps(LEAST | changes))


def refusal(text: str | bytes) -> str:
    with pytest.raises(ValidationError) as refused:
        AgentMetrics.model_validate_json(text)
    return describe(refused.value.errors())


def test_a_report_needs_no_more_than_four_fields() -> None:
    metrics = parse()
    assert (metrics.agent_id, metrics.models, metrics.avg_response_time, metrics.ollama_ok) == ("", None, None, None)
    for name in LEAST:
        text = json.dumps({key: value for key, value in LEAST.items() if key != name})
        assert refusal(text) == f"{name}: Field required"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpu_usage", 0),
        ("cpu_usage", 100),
        ("memory_usage", 99.9),
        ("active_requests", 0),
        ("active_requests", 2**53),
        ("avg_response_time", 0),
        ("avg_response_time", None),
        ("num_parallel", 1),
        ("max_loaded_models", 0),
        ("timestamp", "2026-01-31t12:00:00.123456789+05:30"),
        ("timestamp", "2026-01-31 12:00:00z"),
        ("models", []),
        ("gpus", [{"name": "x", "utilization": None}]),
    ],
)
def test_values_at_the_edge_of_their_range_are_taken(field: str, value: object) -> None:
    parse(**{field: value})


REFUSED: dict[str, list[Any]] = {
    "cpu_usage": [-0.1, 100.1, "50", True, None, [], {}],
    "memory_usage": [-0.1, 100.1, "50", True, None, [], {}],
    "active_requests": [-1, 1.5, 1.0, "1", True, None, 2**53 + 1],
    "avg_response_time": [-1, "1", True],
    "num_parallel": [0, 1.5, "1", True, 100_001],
    "max_loaded_models": [-1, "1", True],
    "ollama_ok": [0, 1, "true"],
    "timestamp": [
        1769860800,
        1769860800.5,
        "1769860800",
        None,
        "",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-01-31T12:00Z",
        "2026-02-30T12:00:00Z",
        "yesterday",
    ],
    "agent_id": ["x" * 257, 5],
    "ollama_version": ["x" * 257],
    "models": ["m", [{"size": 1}], [{"name": ""}], [{"name": "x" * 513}], [{"name": "m"}] * 10_001],
    "loaded_models": [[None]],
    "gpus": [
        [{}],
        [{"name": "x"}] * 65,
        [{"name": "x", "utilization": 101}],
        [{"name": "x", "memory_used": -1}],
        [{"name": "x", "power": -1}],
    ],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field}-{number}")
        for field, values in REFUSED.items()
        for number, value in enumerate(values)
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused_with_the_fields_name(field: str, value: object) -> None:
    said = refusal(json.dumps(LEAST | {field: value}))
    assert said.startswith(field)
    assert "\n" not in said
    assert len(said) < 1000


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["cpu_usage", "memory_usage", "active_requests", "avg_response_time"])
def test_nan_and_infinities_are_refused(field: str, number: str) -> None:
    text = json.dumps(LEAST | {field: "HERE"}).replace('"HERE"', number)
    assert refusal(text).startswith(field)


def test_nan_in_a_gpus_temperature_is_refused_with_its_place() -> None:
    text = json.dumps(LEAST | {"gpus": [{"name": "a"}, {"name": "b", "temperature": "HERE"}]})
    assert refusal(text.replace('"HERE"', "NaN")).startswith("gpus.1.temperature: ")


def test_unknown_fields_are_ignored() -> None:
    assert parse(hostname="x", cpu={"deep": [1]}) == parse()


def test_what_ollama_says_of_a_model_is_kept() -> None:
    entry = {"name": "m:latest", "size": 5, "details": {"family": "llama"}}
    assert parse(models=[entry]).model_dump(mode="json")["models"] == [entry]


def test_the_response_time_has_two_names() -> None:
    assert parse(avg_response_time_ms=12.5).avg_response_time == 12.5
    assert parse(avg_response_time=12.5) == parse(avg_response_time_ms=12.5)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", b"\xff"])
def test_what_is_no_json_object_is_refused(text: str | bytes) -> None:
    assert refusal(text).startswith("body: ")


def test_at_most_five_errors_are_listed() -> None:
    wrong = dict.fromkeys(("num_parallel", "max_loaded_models", "ollama_ok", "gpus"), "x")
    said = refusal(json.dumps(wrong))
    assert said.count(": ") == 5
    assert said.endswith("; and 3 more")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "a b"},
        {"name": "a\n"},
        {"name": "x" * 65},
        {"name": 5},
        {"name": "a", "port": 0},
        {"name": "a", "port": 65536},
        {"name": "a", "port": "80"},
        {"name": "a", "port": True},
        {"name": "a", "url": "x" * 2049},
    ],
)
def test_a_registration_with_a_bad_field_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        AgentRegistration.model_validate_json(json.dumps(body))
    field = next(name for name in ("url", "port", "name") if name in body or name == "name")
    assert describe(refused.value.errors()).startswith(field)
