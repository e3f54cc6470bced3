from __future__ import annotations

import json
import re

import pytest

from ollama_balancer.ollama.errors import error_body, error_event, error_object, model_not_found
from ollama_balancer.ollama.routes import Dialect, dialect_of, find_route

# What a real server (0.33.0-rc2) answered, with status 404, to a request for a model it did not have.
QUOTED = '{"error":"model \'nope\' not found"}'
OPENAI = '{"error":{"message":"model \'nope\' not found","type":"not_found_error","param":null,"code":null}}'
ADVICE = r"model \"nope\" not found, try pulling it first"
UNKNOWN_MODEL = {
    "/api/generate": QUOTED,
    "/api/chat": QUOTED,
    "/api/embed": f'{{"error":"{ADVICE}"}}',
    "/api/embeddings": f'{{"error":"{ADVICE}"}}',
    "/api/show": '{"error":"model \'nope:latest\' not found"}',
    "/v1/chat/completions": OPENAI,
    "/v1/completions": OPENAI,
    "/v1/responses": OPENAI,
    "/v1/embeddings": f'{{"error":{{"message":"{ADVICE}","type":"not_found_error","param":null,"code":null}}}}',
    "/v1/models/nope": OPENAI.replace("nope", "nope:latest"),
    "/v1/messages": '{"type":"error","error":{"type":"not_found_error","message":"model \'nope\' not found"},'
    '"request_id":"req_7f8a77d7e071b387cb1b070e"}',
}


@pytest.mark.parametrize("path", UNKNOWN_MODEL)
def test_an_unknown_model_is_refused_in_the_words_of_the_real_server(path: str) -> None:
    route = find_route(path)
    assert route
    body = error_body(dialect_of(path), 404, model_not_found("nope", route.path)).decode()
    request_id = re.compile(r"req_[0-9a-f]{24}")
    assert request_id.sub("req", body) == request_id.sub("req", UNKNOWN_MODEL[path])


def test_a_tag_that_is_named_is_not_added_to() -> None:
    assert model_not_found("nope:7b", "/api/show") == "model 'nope:7b' not found"


def test_each_request_refused_in_anthropics_protocol_has_an_id_of_its_own() -> None:
    first, second = (error_object(Dialect.ANTHROPIC, 404, "x")["request_id"] for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("dialect", "status", "kind"),
    [
        (Dialect.OPENAI, 400, "invalid_request_error"),
        (Dialect.OPENAI, 503, "api_error"),
        (Dialect.OPENAI, 502, "api_error"),
        (Dialect.ANTHROPIC, 400, "invalid_request_error"),
        (Dialect.ANTHROPIC, 413, "request_too_large"),
        (Dialect.ANTHROPIC, 503, "overloaded_error"),
        (Dialect.ANTHROPIC, 502, "api_error"),
    ],
)
def test_the_type_of_an_error_follows_its_status(dialect: Dialect, status: int, kind: str) -> None:
    error = json.loads(error_body(dialect, status, 'a "quoted"\nmessage'))["error"]
    assert (error["type"], error["message"]) == (kind, 'a "quoted"\nmessage')


@pytest.mark.parametrize(
    ("dialect", "begin"),
    [
        (Dialect.OLLAMA, b"data: "),
        (Dialect.OPENAI, b"data: "),
        (Dialect.ANTHROPIC, b"event: error\ndata: "),
        (Dialect.RESPONSES, b"event: error\ndata: "),
    ],
)
def test_an_error_in_an_event_stream_is_one_event(dialect: Dialect, begin: bytes) -> None:
    event = error_event(dialect, "text/event-stream; charset=utf-8", "line one\nline two")
    assert event.startswith(begin)
    assert event.endswith(b"\n\n")
    data = event.removeprefix(begin).removesuffix(b"\n\n")
    assert b"\n" not in data
    error = json.loads(data)["error"]
    assert (error if dialect is Dialect.OLLAMA else error["message"]) == "line one\nline two"


def test_an_error_in_an_ndjson_stream_is_one_line() -> None:
    event = error_event(Dialect.OLLAMA, "application/x-ndjson", "line one\nline two")
    assert event == b'{"error":"line one\\nline two"}\n'
