"""What hosts list is bounded in bytes, entries and values before it is built."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from agent_reporter.limits import MAX_BODY_BYTES, MAX_MODELS, MAX_VALUES
from agent_reporter.wire import AgentMetrics, check_size
from ollama_balancer.api.reports import take_report
from ollama_balancer.core.address import Address
from ollama_balancer.hosts.prober import MAX_ANSWER_BYTES, Models
from tests.core.fakes import new_registry
from tests.e2e.harness import report

ENTRY = {
    "name": "some-registry.example/namespace/model-000000:latest-q4_K_M",
    "model": "some-registry.example/namespace/model-000000:latest-q4_K_M",
    "modified_at": "2026-11-23T18:59:10.69935064Z",
    "size": 4_661_224_676,
    "digest": "365c0bd3c000a25d28ddbf732fe1c6add414de7275464c4e4d1c3b5fcb5d8ad1",
    "details": {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "8.0B",
        "quantization_level": "Q4_0",
    },
}


def tags(count: int) -> bytes:
    return json.dumps({"models": [ENTRY | {"name": f"m{n}", "model": f"m{n}"} for n in range(count)]}).encode()


def test_as_many_models_as_a_host_may_have_are_read_as_ollama_lists_them() -> None:
    body = tags(MAX_MODELS)
    assert len(body) <= MAX_ANSWER_BYTES
    listed = Models.model_validate_json(check_size(body)).models
    assert listed is not None and len(listed) == MAX_MODELS


@pytest.mark.parametrize("unit", [b'{"name":"a"},', b"[],", b"1,", b'{"a":1},'])
def test_a_list_of_100_000_entries_is_refused_before_it_is_built(unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"models":[' + unit * 100_000 + unit[:-1] + b"]}"
    with pytest.raises(ValueError, match=f"more than {MAX_VALUES}"):
        check_size(body)
    registry = new_registry()
    registry.register("a", Address("10.0.0.1", 11434))
    monkeypatch.setattr(AgentMetrics, "model_validate_json", lambda body: pytest.fail("it is built"))
    assert not take_report(registry, "/api/agents/a/metrics", body, lambda agent: True)


def test_of_a_list_of_what_is_no_model_one_entry_is_looked_at() -> None:
    body = json.dumps(report() | {"models": [{"nam": "a"}] * MAX_MODELS}).encode()
    with pytest.raises(ValidationError) as refused:
        AgentMetrics.model_validate_json(check_size(body))
    assert len(refused.value.errors()) == 1


def test_the_largest_report_has_no_more_values_than_are_read() -> None:
    body = json.dumps(report() | {"models": [{"name": f"m{n}"} for n in range(MAX_MODELS)]}).encode()
    assert len(body) <= MAX_BODY_BYTES
    check_size(body)
