from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ollama_balancer.ollama.errors import (
    Blame,
    classify,
    classify_message,
    error_body,
    error_event,
    error_object,
    is_object,
    message_of,
    model_not_found,
)
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


# Whom an error blames

RECORDINGS = Path(__file__).parents[1] / "recordings"

PLAIN, JSON, HTML = b"404 page not found", b'{"error":"%s"}', b"<html><head><title>%s</title></head></html>"

OUT_OF_MEMORY = "cudaMalloc failed: out of memory"
STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
INCOMPATIBLE = (
    "unable to load model: /blobs/sha256-00: this model may be incompatible with your version of Ollama. If you "
    "previously pulled this model, try updating it by running `ollama pull m`"
)

MESSAGES = {
    # A runner that had loaded: by version, the oldest first.
    "llama runner exited, you may not have enough available memory to run this model": Blame.HOST_CANNOT,
    "an unknown error was encountered while running the model ": Blame.HOST_CANNOT,
    'POST predict: Post "http://127.0.0.1:40000/completion": EOF': Blame.HOST_CANNOT,
    "an error was encountered while running the model: unexpected EOF": Blame.HOST_CANNOT,
    STOPPED: Blame.HOST_CANNOT,
    f"{STOPPED}: CUDA error: an illegal memory access was encountered": Blame.HOST_CANNOT,
    "llama runner process no longer running: 2 ": Blame.HOST_CANNOT,
    "llama-server process no longer running: exit status 1 ": Blame.HOST_CANNOT,
    'do embedding request: Post "http://127.0.0.1:40000/embedding": EOF': Blame.HOST_CANNOT,
    'Post "http://127.0.0.1:40000/tokenize": dial tcp 127.0.0.1:40000: connect: connection refused': Blame.HOST_CANNOT,
    "error reading llm response: unexpected EOF": Blame.HOST_CANNOT,
    "error reading llama-server chat response: read tcp: connection reset by peer": Blame.HOST_CANNOT,
    "mlx runner failed: panic: out of range": Blame.HOST_CANNOT,
    "unexpected server status: llm server error": Blame.HOST_CANNOT,
    "no slots available after 10 retries": Blame.HOST_CANNOT,
    "timed out waiting for llama runner to start - progress 0.00 - ": Blame.HOST_CANNOT,
    "timed out waiting for llama-server to start - ": Blame.HOST_CANNOT,
    "timeout waiting for mlx runner to start": Blame.HOST_CANNOT,
    "CUDA error: device-side assert triggered": Blame.HOST_CANNOT,
    "GGML_ASSERT(ctx->mem_buffer != NULL) failed": Blame.HOST_CANNOT,
    "error starting llama-server: fork/exec /usr/lib/llama-server: no such file or directory ": Blame.HOST_CANNOT,
    "fork/exec /usr/bin/ollama: resource temporarily unavailable": Blame.HOST_CANNOT,
    "open /models/blobs/sha256-00: input/output error": Blame.HOST_CANNOT,
    "llama-server process has terminated: exit status 1: CUDA error: no CUDA-capable device": Blame.HOST_CANNOT,
    "llama runner process has terminated: read /models/sha256-00: input/output error": Blame.HOST_CANNOT,
    # A load
    "llama-server process has terminated: signal: killed": Blame.CANNOT_LOAD,
    "llama-server process has terminated: exit status 1: error loading model: tensor data is cut": Blame.CANNOT_LOAD,
    f"llama-server process has terminated: exit status 1: CUDA error:\n{OUT_OF_MEMORY}": Blame.CANNOT_LOAD,
    f"llama-server reported out-of-memory during startup: {OUT_OF_MEMORY}": Blame.CANNOT_LOAD,
    f"llama runner process has terminated: {OUT_OF_MEMORY}": Blame.CANNOT_LOAD,
    "llama runner process has terminated: exit status 2": Blame.CANNOT_LOAD,
    "llama runner process has terminated": Blame.CANNOT_LOAD,
    "llama runner process has terminated: error loading model: unknown model architecture: 'new'": Blame.CANNOT_LOAD,
    "model requires more system memory (40.1 GiB) than is available (12.0 GiB)": Blame.CANNOT_LOAD,
    "model requires 40.1 GiB but only 12.0 GiB are available (after 1.0 GiB overhead)": Blame.CANNOT_LOAD,
    "model failed to load, this may be due to resource limitations or an internal error, check": Blame.CANNOT_LOAD,
    "memory layout cannot be allocated with num_gpu = 99": Blame.CANNOT_LOAD,
    "mlx runner failed: mlx: no such tensor (exit: exit status 1)": Blame.CANNOT_LOAD,
    INCOMPATIBLE: Blame.CANNOT_LOAD,
    # What the caller has asked for
    'template: :3:12: executing "" at <.Tool>: can\'t evaluate field Tool': Blame.CALLER,
    "error parsing tool call: raw='CUDA error', err=invalid character 'C'": Blame.CALLER,
    'invalid format: "CUDA error"; expected \\"json\\" or a valid JSON Schema object': Blame.CALLER,
    "Failed to create new sequence: failed to process inputs: invalid image index: 3": Blame.CALLER,
    "Failed to parse input at pos 17: an error was encountered while running the model": Blame.CALLER,
    "invalid character '}' after object key": Blame.CALLER,
    "the input length exceeds the context length": Blame.CALLER,
    "a failure in words that no version has": Blame.CALLER,
    # Beside these
    "server busy, please try again.  maximum pending requests exceeded": Blame.HOST_BUSY,
    "model 'm' not found, try pulling it first": Blame.LACKS_MODEL,
}


@pytest.mark.parametrize("message", MESSAGES)
def test_the_words_of_an_error_tell_whom_it_blames(message: str) -> None:
    assert classify_message(message) is MESSAGES[message]
    assert classify(500, error_body(Dialect.OLLAMA, 500, message)) is MESSAGES[message]
    assert classify(500, error_body(Dialect.OPENAI, 500, message)) is MESSAGES[message]
    assert classify(500, error_body(Dialect.ANTHROPIC, 500, message)) is MESSAGES[message]


def test_what_the_runner_said_counts_where_the_server_passes_it_on_as_text() -> None:
    inner = json.dumps({"error": {"code": 500, "message": "CUDA error: invalid argument", "type": "server_error"}})
    body = json.dumps({"error": inner}).encode()
    assert message_of(body) == "CUDA error: invalid argument"
    assert classify(500, body) is Blame.HOST_CANNOT
    assert message_of(b'{"error":"' + b"x" * 100_000) == "x" * 100_000  # the rest has not come
    assert classify(500, b'{"error":"template: ' + b"x" * 100_000) is Blame.CALLER
    for nonsense in (b"", b"[]", b"{}", b'{"error":7}', b'{"error":{"message":[]}}', b"<html>", b"\xff\xfe"):
        assert message_of(nonsense) is None


NGINX = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1><hr>nginx</body></html>"
SIGN_IN = b'{"error":"unauthorized","signin_url":"https://ollama.com/connect?name=h"}'
LLAMACPP = b'{"error":{"message":"%s","type":"x","code":1}}'


@pytest.mark.parametrize(
    ("status", "body", "blame"),
    [
        (401, b"", Blame.HOST_REFUSES),
        (401, NGINX, Blame.HOST_REFUSES),
        (401, LLAMACPP % b"Invalid API Key", Blame.HOST_REFUSES),
        (403, b"", Blame.HOST_REFUSES),  # its check of the Host header
        (401, SIGN_IN, Blame.CANNOT_LOAD),
        (403, b'{"error":"ollama cloud is disabled: remote model is unavailable"}', Blame.CANNOT_LOAD),
        (400, b'{"error":"this server cannot run this remote model"}', Blame.CANNOT_LOAD),
        (429, b"", Blame.HOST_BUSY),
        (409, b'{"error":"another one is at it"}', Blame.HOST_BUSY),
        (499, b'{"error":"request canceled"}', Blame.HOST_BUSY),
        (503, LLAMACPP % b"Loading model", Blame.HOST_BUSY),
        (503, NGINX, Blame.HOST_CANNOT),
        (503, b"upstream connect error or disconnect/reset before headers", Blame.HOST_CANNOT),
        (502, NGINX, Blame.HOST_CANNOT),
        (504, b"", Blame.HOST_CANNOT),
        (500, b"", Blame.HOST_CANNOT),  # a handler panicked
        (500, NGINX, Blame.HOST_CANNOT),
        (522, b"", Blame.HOST_CANNOT),
        (302, b"", Blame.HOST_CANNOT),  # a proxy that wants TLS, or a person to log in
        (400, b"Client sent an HTTP request to an HTTPS server.\n", Blame.HOST_CANNOT),
        (400, b"<html>400 The plain HTTP request was sent to HTTPS port</html>", Blame.HOST_CANNOT),
        (404, b"404 page not found", Blame.LACKS_ROUTE),
        (404, LLAMACPP % b"File Not Found", Blame.LACKS_ROUTE),
        (404, b"default backend - 404", Blame.LACKS_ROUTE),
        (405, b"405 method not allowed", Blame.LACKS_ROUTE),
        (501, b"", Blame.LACKS_ROUTE),
        (404, b'{"error":"model \'m\' not found"}', Blame.LACKS_MODEL),
        (404, b'{"error":"model \'\' not found"}', Blame.CALLER),
        (404, b'{"error":"blob \\"sha256:00\\" not found"}', Blame.CALLER),
        (404, b'{"error":"I have seen that model \'m\' not found"}', Blame.CALLER),
        (501, b'{"error":"this model does not support embeddings"}', Blame.CALLER),
        (400, b'{"error":"server busy, please try again."}', Blame.CALLER),
        (413, NGINX, Blame.CALLER),
        (422, b'{"detail":[]}', Blame.CALLER),
    ],
)
def test_the_status_tells_the_rest(status: int, body: bytes, blame: Blame) -> None:
    assert classify(status, body) is blame


def test_who_asks_to_retry_is_busy_whatever_the_page() -> None:
    assert classify(503, NGINX, asks_to_retry=True) is Blame.HOST_BUSY


def test_what_the_account_of_a_host_may_not_do_says_nothing_about_the_balancer() -> None:
    assert classify(401, b'{"error":"you are not currently signed in"}', find_route("/api/me")) is Blame.CALLER
    assert classify(401, b"", find_route("/api/chat")) is Blame.HOST_REFUSES


RECORDED = {
    "embed_completion_model.json": Blame.CALLER,
    "generate_cloud_model.json": Blame.CANNOT_LOAD,
    "generate_no_model.json": Blame.CALLER,
    "me.json": Blame.HOST_BUSY,
    "model_as_name_field.json": Blame.CALLER,
    "web_search.json": Blame.CALLER,
}
USUAL = {400: Blame.CALLER, 403: Blame.HOST_REFUSES, 404: Blame.LACKS_MODEL, 405: Blame.LACKS_ROUTE}


def recorded_refusals() -> list[tuple[str, str, int, bytes]]:
    """Name, path, status and body; those of a HEAD have no words."""
    found = []
    for file in sorted(RECORDINGS.glob("*.json")):
        recording = json.loads(file.read_text())
        request, response = recording.get("request") or {}, recording.get("response") or {}
        body = response.get("body")
        if response.get("status", 0) >= 400 and isinstance(body, dict) and request.get("method") != "HEAD":
            found.append((file.name, request.get("path") or "", response["status"], body["text"].encode()))
    return found


@pytest.mark.parametrize(("name", "path", "status", "body"), recorded_refusals())
def test_what_a_real_server_refused_blames_who_was_to_blame(name: str, path: str, status: int, body: bytes) -> None:
    blame = RECORDED.get(name, USUAL.get(status, Blame.CALLER))
    if body == b"404 page not found":
        blame = Blame.LACKS_ROUTE
    assert classify(status, body, find_route(path)) is blame


def test_what_a_real_server_said_when_its_runner_was_killed() -> None:
    # [kill_runner_nostream], [kill_runner_while_loading]
    assert classify(500, b'{"error":"an error was encountered while running the model: unexpected EOF"}') is (
        Blame.HOST_CANNOT
    )
    assert classify(500, b'{"error":"llama-server process has terminated: signal: killed"}') is Blame.CANNOT_LOAD


def test_an_answer_of_too_many_values_says_nothing() -> None:
    heavy = b'{"error":"model runner has unexpectedly stopped","x":[' + b"[]," * 1_000_000 + b"[]]}"
    assert message_of(heavy) is None
    assert not is_object(heavy)
