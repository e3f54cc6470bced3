"""The control API's document: whether it says what is answered. Whether it is one: see `e2e/test_openapi.py`."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from agent_reporter.wire import URL_PATTERN, CollectorOutcome, GpuMetrics
from ollama_balancer import __version__
from ollama_balancer.api.calls import CALLS, Call, answers_of
from ollama_balancer.api.paths import OPENAPI, PATHS, is_control_path
from ollama_balancer.api.reporter_wheel import wheel_name
from ollama_balancer.core.address import Address
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.observations import AnswerObservation
from ollama_balancer.core.stats import RequestSummary
from tests.api.test_app import Api
from tests.core.fakes import entries, fleet, report

FULL_REPORT = report(
    models=entries("m"),
    loaded_models=entries("m"),
    gpus=[GpuMetrics(name="card", utilization=5.0)],
    collectors=[CollectorOutcome(name="cpu", ok=True, seconds=0.1)],
    load_average=[1.0, 2.0, 3.0],
)


@pytest.fixture
def api() -> Api:
    return Api()


def busy(api: Api) -> None:
    """Let the fleet have something to tell in every field."""
    first, second = fleet(api.registry, "a", "b")
    api.registry.update_metrics(first.id, FULL_REPORT)
    second.alias_of = first
    demand = Demand("m:latest", tokens=800)
    lease = api.registry.limiter.take(first, demand.model, demand, api.registry.selection.choose(demand).options)
    lease.began()
    api.registry.limiter.answered(lease, AnswerObservation(800, 0.5, 100, 2.5, 6.0))
    over = RequestSummary(
        "a", "m:latest", "/api/chat", "succeeded", 2.5, first_token=0.25, prompt_tokens=3, output_tokens=7
    )
    api.request_metrics.add(over)
    api.history.add(over)


def document(api: Api) -> dict[str, Any]:
    answer = api.call("GET", OPENAPI, authorized=False)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    value: dict[str, Any] = answer.json()
    return value


def test_the_document_is_of_this_version(api: Api) -> None:
    assert document(api)["info"]["version"] == __version__


def test_the_document_has_every_call_and_who_may_make_it(api: Api) -> None:
    paths = document(api)["paths"]
    assert {path for path in paths if "{" not in path} == PATHS
    assert all(is_control_path(re.sub(r"{.*?}", "gpu-1", path)) for path in paths)
    described = {(method.upper(), path): each for path, item in paths.items() for method, each in item.items()}
    for call in CALLS:
        operation = described[call.method, call.path]
        assert bool(operation["security"]) is bool(call.rights)
        assert ({} in operation["security"]) is (bool(call.rights) and not call.always)
        by_code = call.operation == "join"  # which takes a join code in place of a right
        assert ("401" in operation["responses"]) is (bool(call.rights) or by_code)
        assert call.always or call.method == "GET" or by_code
        if call.method == "GET":
            head = described["HEAD", call.path]
            assert not any("content" in response for response in head["responses"].values())
    operations = [each["operationId"] for (method, _), each in described.items() if method != "PARAMETERS"]
    assert len(operations) == len(set(operations))


def validator(value: dict[str, Any], model: type[BaseModel]) -> Draft202012Validator:
    """Of answers, which may have nothing that the document does not describe."""
    schemas = {
        name: {"additionalProperties": False} | schema if "properties" in schema else schema
        for name, schema in value["components"]["schemas"].items()
    }
    assert "date-time" in Draft202012Validator.FORMAT_CHECKER.checkers
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{model.__name__}", "components": {"schemas": schemas}},
        format_checker=Draft202012Validator.FORMAT_CHECKER,
    )


@pytest.mark.parametrize(
    "call", [call for call in CALLS if call.method == "GET" and not call.always], ids=lambda call: call.operation
)
@pytest.mark.parametrize("with_something_to_tell", [False, True])
def test_what_is_answered_is_what_the_document_describes(api: Api, call: Call, with_something_to_tell: bool) -> None:
    value = document(api)
    if with_something_to_tell:
        busy(api)
    else:
        fleet(api.registry, "a")
    answer = api.call(call.method, call.path.replace("{id}", "a").replace("{file}", wheel_name()), authorized=False)
    assert answer.status_code == 200
    described = answers_of(call)[200]
    if isinstance(described.content, tuple):
        assert answer.headers["Content-Type"].partition(";")[0] in described.content
    elif described.content is not None:
        assert answer.headers["Content-Type"] == "application/json"
        validator(value, described.content).validate(answer.json())


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.from_regex(URL_PATTERN.replace("$", r"\Z").replace(r"|\[[0-9A-Fa-f:.]{2,45}\]", r"|\[::1\]")))
def test_a_url_of_the_documents_pattern_is_read(url: str) -> None:
    assert Address.parse(url).url.startswith("http://")


@pytest.mark.parametrize(
    "url", ["http://gpu-1:11434", "http://10.0.0.1", "http://[fe80::1]:80/", "http://gpu_1.lan.:65535"]
)
def test_urls_as_they_are_written_are_of_the_documents_pattern(url: str) -> None:
    Address.parse(url)
    assert re.search(URL_PATTERN, url)


@pytest.mark.parametrize("url", ["http://a:0", "http://a:65536", "https://a", "http://a/b", "http://", "http://a b"])
def test_urls_that_are_refused_are_not(url: str) -> None:
    with pytest.raises(ValueError, match="http://"):
        Address.parse(url)
    assert not re.search(URL_PATTERN, url)
