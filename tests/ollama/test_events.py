"""Bodies that a real server sent, split anywhere, and what hostile ones may do.

In `recordings` are whole bodies; of `kill_*` the ends, and of `v1_chat_stream_too_long_no_truncate` both ends.
"""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from ollama_balancer.ollama import answers, events
from ollama_balancer.ollama.answer_watcher import READ_BYTES, AnswerWatcher, Verdict
from ollama_balancer.ollama.answers import MAX_TEXT, Answer, ToolCall
from ollama_balancer.ollama.error_trailers import error_trailer
from ollama_balancer.ollama.events import MAX_EVENT_BYTES, SHORTEST, EventParser, NdjsonParser, SseParser, event_parser
from ollama_balancer.ollama.json_scanning import MAX_VALUES
from ollama_balancer.ollama.routes import Dialect
from ollama_balancer.ollama.shapes import (
    MAX_TOOL_CALLS,
    MIN_TOKENS,
    TOO_LARGE,
    Context,
    Event,
    Timings,
    read_answer,
    read_event,
)
from tests.examples import amount

NDJSON, SSE, JSON = "application/x-ndjson", "text/event-stream", "application/json; charset=utf-8"
TYPES = {".ndjson": NDJSON, ".sse": SSE, ".json": JSON}
RECORDINGS = Path(__file__).parent / "recordings"
NO_TERMINAL = "the stream ended without its terminal event"

CRASHED = "an error was encountered while running the model: unexpected EOF"
NO_HOST = "dial tcp: lookup registry.ollama.ai on 10.255.255.53:53: no such host"
MANIFEST = 'pull model manifest: Get "https://registry.ollama.ai/v2/library/{}/manifests/latest": '
BLOB = "sha256:66d2241a2a937c1f19424ca75b5706aca22540190e198414a40988d7a30309cb"

VERDICTS = {
    "chat_stream.ndjson": Verdict(True, None, 6, 0.002203),
    "chat_tools_stream.ndjson": Verdict(True, None, 2, 0.001477),
    "create_bad_blob.ndjson": Verdict(False, f"open /models/blobs/sha256-{'0' * 64}: no such file or directory"),
    "create_from_stream.ndjson": Verdict(True),
    "create_missing_from.ndjson": Verdict(False, MANIFEST.format("nope") + NO_HOST),
    "generate_logprobs.ndjson": Verdict(True, None, 6, 0.001475),
    "generate_stream.ndjson": Verdict(True, None, 6, 0.001677),
    "kill_runner_chat_stream.ndjson": Verdict(False, CRASHED),
    "kill_runner_midstream.ndjson": Verdict(False, CRASHED),
    "kill_runner_v1_messages_stream.sse": Verdict(False, NO_TERMINAL),
    "kill_runner_v1_responses_stream.sse": Verdict(False, NO_TERMINAL),
    "kill_runner_v1_stream.sse": Verdict(False, NO_TERMINAL),
    "kill_server_sigkill_midstream.ndjson": Verdict(False, NO_TERMINAL),
    "kill_server_sigterm_midstream.ndjson": Verdict(False, NO_TERMINAL),
    "pull_nonetwork.ndjson": Verdict(False, MANIFEST.format("llama3") + NO_HOST),
    "push_nonetwork.ndjson": Verdict(
        False, f'Head "https://registry.ollama.ai/v2/library/tiny-a/blobs/{BLOB}": {NO_HOST}'
    ),
    "llamacpp_chat_stream.sse": Verdict(True, None, 8, 0.090343),
    "llamacpp_chat_stream_usage.sse": Verdict(True, None, 8, 0.094357),
    "v1_chat_stream.sse": Verdict(True),
    "v1_chat_stream_too_long_no_truncate.sse": Verdict(True),
    "v1_chat_stream_usage.sse": Verdict(True, None, 5),
    "v1_chat_tools_stream.sse": Verdict(True),
    "v1_completions_stream.sse": Verdict(True),
    "v1_messages_stream.sse": Verdict(True, None, 5),
    "v1_messages_tools_stream.sse": Verdict(True, None, 2),
    "v1_responses_stream.sse": Verdict(True, None, 5),
}
WHOLE_VERDICTS = {
    "chat_nostream.json": Verdict(True, None, 6, 0.001561),
    "chat_tools_nostream.json": Verdict(True, None, 2, 0.000605),
    "create_from_nostream.json": Verdict(True),
    "embed_single.json": Verdict(True),
    "generate_keepalive_0_empty.json": Verdict(True),
    "generate_load_empty_prompt.json": Verdict(True),
    "generate_nostream.json": Verdict(True, None, 6, 0.000849),
    "kill_runner_nostream.json": Verdict(False, CRASHED),
    "unknown_model_chat_stream.json": Verdict(False, "model 'nope' not found"),
    "unknown_model_v1_chat_stream.json": Verdict(False, "model 'nope' not found"),
    "unknown_model_v1_completions_stream.json": Verdict(False, "model 'nope' not found"),
    "unknown_model_v1_messages_stream.json": Verdict(False, "model 'nope' not found"),
    "unknown_model_v1_responses_stream.json": Verdict(False, "model 'nope' not found"),
    "llamacpp_chat.json": Verdict(True, None, 8, 0.107534),
    "v1_chat_nostream.json": Verdict(True, None, 5),
    "v1_chat_tools.json": Verdict(True, None, 2),
    "v1_completions.json": Verdict(True, None, 5),
    "v1_embeddings.json": Verdict(True),
    "v1_messages.json": Verdict(True, None, 5),
    "v1_responses.json": Verdict(True, None, 5),
}
STREAMS = sorted(VERDICTS)
WHOLE_STREAMS = sorted(name for name, verdict in VERDICTS.items() if verdict.whole)

TIMINGS = {
    "chat_stream.ndjson": Timings(26, 0.001367, 6, 0.002203, 0.002181224, 0.008083173),
    "chat_tools_stream.ndjson": Timings(206, 0.004893, 2, 0.001477, 0.259922978, 0.270002229),
    "generate_logprobs.ndjson": Timings(22, 0.002678, 6, 0.001475, 0.001059451, 0.007817278),
    "llamacpp_chat_stream.sse": Timings(33, 0.01604, 8, 0.090343, cached_tokens=32),
    "llamacpp_chat_stream_usage.sse": Timings(33, 0.014906, 8, 0.094357, cached_tokens=32),
    "llamacpp_chat.json": Timings(33, 261.607 / 1e3, 8, 0.107534, cached_tokens=0),
    "generate_stream.ndjson": Timings(25, 0.001682, 6, 0.001677, 0.001773509, 0.007677921),
    "v1_chat_stream_usage.sse": Timings(26, None, 5),
    "v1_messages_stream.sse": Timings(26, None, 5),
    "v1_messages_tools_stream.sse": Timings(177, None, 2),
    "v1_responses_stream.sse": Timings(25, None, 5),
    "chat_nostream.json": Timings(26, 0.00042, 6, 0.001561, 0.001754892, 0.005576326),
    "chat_tools_nostream.json": Timings(206, 0.001201, 2, 0.000605, 0.001741632, 0.006980167),
    "embed_single.json": Timings(3, load_duration=0.258692304, total_duration=0.261761784),
    "generate_nostream.json": Timings(25, 0.000632, 6, 0.000849, 0.0015377, 0.006085621),
    "v1_chat_nostream.json": Timings(26, None, 5),
    "v1_chat_tools.json": Timings(206, None, 2),
    "v1_completions.json": Timings(25, None, 5),
    "v1_embeddings.json": Timings(3),
    "v1_messages.json": Timings(26, None, 5),
    "v1_responses.json": Timings(25, None, 5),
}
CALL_IDS = {
    "chat_tools_stream.ndjson": "call_7ea3rrap",
    "v1_chat_tools_stream.sse": "call_kd2s4t0v",
    "v1_messages_tools_stream.sse": "call_wor02hxe",
    "chat_tools_nostream.json": "call_t2hn2j56",
    "v1_chat_tools.json": "call_80iwt2fq",
}


def recording(name: str) -> tuple[str, bytes]:
    path = RECORDINGS / name
    return TYPES[path.suffix], path.read_bytes()


def watch(content_type: str, *chunks: bytes) -> AnswerWatcher:
    watcher = AnswerWatcher(content_type)
    for chunk in chunks:
        watcher.feed(chunk)
    return watcher


def parser(content_type: str) -> EventParser:
    parser = event_parser(content_type)
    assert parser is not None
    return parser


def parse(content_type: str, *chunks: bytes) -> list[Event]:
    reader = parser(content_type)
    return [event for chunk in chunks for event in reader.feed(chunk)] + reader.close()


def split(body: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    return [body[a:b] for a, b in pairwise(places)]


def sse(*objects: dict[str, Any]) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(thing).encode() for thing in objects)


def ndjson(*objects: dict[str, Any]) -> bytes:
    return b"".join(b"%s\n" % json.dumps(thing).encode() for thing in objects)


def content_of(name: str) -> str:
    """A recorded body's text, read in the plainest way."""
    content_type, body = recording(name)
    if content_type == JSON:
        value = json.loads(body)
        if "choices" in value:
            choice = value["choices"][0]
            return str(choice["message"]["content"] if "message" in choice else choice["text"])
        if "output" in value:
            return str(value["output"][0]["content"][0]["text"])
        if "content" in value:
            return str(value["content"][0]["text"])
        return str(value["message"]["content"] if "message" in value else value.get("response", ""))
    text = ""
    for line in body.decode().splitlines():
        data = line.removeprefix("data: ") if content_type == SSE else line
        if not data.startswith("{"):
            continue
        value = json.loads(data)
        if "choices" in value:
            for choice in value["choices"]:
                text += (choice["delta"].get("content") or "") if "delta" in choice else choice["text"]
        elif "type" in value:
            if value["type"] == "content_block_delta":
                text += value["delta"].get("text", "")
            elif value["type"] == "response.output_text.delta":
                text += value["delta"]
        else:
            text += value["message"]["content"] if "message" in value else value.get("response", "")
    return text


# Recorded bodies


def test_every_recorded_body_is_judged() -> None:
    assert {path.name for path in RECORDINGS.iterdir()} == VERDICTS.keys() | WHOLE_VERDICTS.keys()


@settings(derandomize=True, deadline=None, max_examples=1000)
@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 5000), max_size=30))
def test_what_is_read_does_not_depend_on_how_the_stream_was_split(name: str, cuts: list[int]) -> None:
    content_type, body = recording(name)
    chunks = split(body, cuts)
    assert parse(content_type, *chunks) == parse(content_type, body)
    watcher = watch(content_type, *chunks)
    assert watcher.verdict() == VERDICTS[name]
    assert watcher.terminal_seen is VERDICTS[name].whole
    assert b"".join(watcher.captured.ends()) == body
    assert watcher.captured.left_out == 0


@settings(derandomize=True, deadline=None, max_examples=500)
@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 5000), max_size=30))
def test_who_skims_a_stream_judges_it_alike(name: str, cuts: list[int]) -> None:
    content_type, body = recording(name)
    read, skimmed = AnswerWatcher(content_type), AnswerWatcher(content_type, skim=True)
    for chunk in split(body, cuts):
        read.feed(chunk)
        skimmed.feed(chunk)
        assert skimmed.partial_event == read.partial_event
    assert skimmed.verdict() == read.verdict() == VERDICTS[name]
    for what in ("events", "terminal", "error", "timings", "context", "ends_too_large"):
        assert getattr(skimmed.answer, what) == getattr(read.answer, what), what
    assert skimmed.captured.ends() == read.captured.ends()


def test_who_skims_counts_the_events_in_the_middle_and_reads_those_that_end_or_fail() -> None:
    goes_on = b'{"message":{"role":"assistant","content":"a word"},"done":false}\n'
    for then, verdict in (
        (b'{"message":{"content":""},"done":true,"eval_count":9,"eval_duration":3}\n', Verdict(True, None, 9, 3e-9)),
        (b'{"error":"no more memory"}\n', Verdict(False, "no more memory")),
        (b'{"error":"no more memory","done":false}\n', Verdict(False, "no more memory")),
        (b'{"status":"success","done":false}\n', Verdict(True)),
        (b"", Verdict(False, NO_TERMINAL)),
    ):
        for chunks in ([goes_on * 3, then], [goes_on, goes_on * 2 + then], [goes_on * 3 + then[:9], then[9:]]):
            watcher = AnswerWatcher(NDJSON, skim=True)
            for chunk in chunks:
                watcher.feed(chunk)
            assert watcher.verdict() == verdict
            assert watcher.answer.pieces == 3
    watcher = AnswerWatcher(NDJSON, skim=True)
    watcher.feed(goes_on * 3)
    assert watcher.answer.text == ""


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_stream_in_pieces_is_read_as_in_one(name: str, size: int) -> None:
    content_type, body = recording(name)
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    assert parse(content_type, *chunks) == parse(content_type, body)


@pytest.mark.parametrize("name", STREAMS)
def test_an_event_is_read_with_the_chunk_in_which_it_ends(name: str) -> None:
    content_type, body = recording(name)
    end = b"\n\n" if content_type == SSE else b"\n"
    reader = parser(content_type)
    for event in body.split(end)[:-1]:
        assert len(reader.feed(event + end)) == 1
    assert reader.close() == []


@pytest.mark.parametrize("name", STREAMS + sorted(WHOLE_VERDICTS))
def test_the_text_is_what_the_structure_says(name: str) -> None:
    watcher = watch(*recording(name))
    assert watcher.verdict() == (VERDICTS | WHOLE_VERDICTS)[name]
    assert watcher.answer.text == content_of(name)
    assert watcher.answer.thinking == ""


@pytest.mark.parametrize("name", STREAMS + sorted(WHOLE_VERDICTS))
def test_the_tool_calls_and_the_timings_are_those_recorded(name: str) -> None:
    watcher = watch(*recording(name))
    watcher.verdict()
    calls = [ToolCall("get_weather", '{"city":"Paris"}', CALL_IDS[name])] if name in CALL_IDS else []
    assert watcher.answer.tool_calls == calls
    assert watcher.answer.timings == TIMINGS.get(name, Timings())


@pytest.mark.parametrize("name", WHOLE_STREAMS)
def test_a_stream_that_breaks_off_anywhere_before_its_terminal_event_is_not_whole(name: str) -> None:
    content_type, body = recording(name)
    body = body.rstrip()
    for end in range(0, len(body), amount(1, 7)):
        watcher = watch(content_type, body[:end])
        assert watcher.verdict() == Verdict(False, NO_TERMINAL)
        assert not watcher.terminal_seen
    assert watch(content_type, body).verdict() == VERDICTS[name]


# What is whole


def test_tokens_per_second_come_from_the_final_event() -> None:
    timings = {"eval_count": 20, "eval_duration": 100_000_000}
    verdict = watch(NDJSON, json.dumps({"done": True} | timings).encode()).verdict()
    assert verdict.tokens_per_second == pytest.approx(200)


@pytest.mark.parametrize(
    "timings",
    [None, [], {}, {"prompt_n": 3}, {"cache_n": -1, "prompt_n": 3}, {"cache_n": "1", "prompt_n": 3}],
)
def test_timings_that_are_not_llama_cpps_are_left_alone(timings: object) -> None:
    chunk = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, "timings": timings}
    assert read_event(chunk).timings == Timings(3, None, 4)


@pytest.mark.parametrize("milliseconds", [None, -1.0, "1", True, math.nan, math.inf, 1e300])
def test_odd_durations_of_llama_cpp_count_as_missing(milliseconds: object) -> None:
    timings = {"cache_n": 1, "prompt_n": 2, "prompt_ms": milliseconds, "predicted_n": 4, "predicted_ms": 10}
    assert read_event({"choices": [], "timings": timings}).timings == Timings(3, None, 4, 0.01, cached_tokens=1)


def test_what_llama_cpps_timings_do_not_say_the_usage_does() -> None:
    chunk = {
        "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        "timings": {"cache_n": 1, "prompt_n": 2},
    }
    assert read_event(chunk).timings == Timings(3, None, 4, cached_tokens=1)


def test_an_answer_of_few_tokens_tells_no_speed() -> None:
    """The first token counts as time of the prompt: one alone took a microsecond."""
    verdict = watch(*recording("chat_stream.ndjson")).verdict()
    assert verdict.output_tokens == 6
    assert verdict.decode_seconds == pytest.approx(0.002203)
    assert verdict.tokens_per_second is None
    for count, nanoseconds in ((1, 1000), (MIN_TOKENS - 1, 100_000_000)):
        final = {"done": True, "eval_count": count, "eval_duration": nanoseconds}
        assert watch(NDJSON, json.dumps(final).encode()).verdict().tokens_per_second is None


@pytest.mark.parametrize(
    "timings",
    [
        {},
        {"eval_count": 50},
        {"eval_count": 50, "eval_duration": 0},
        {"eval_count": True, "eval_duration": "x"},
        {"eval_count": -50, "eval_duration": 10},
        {"eval_count": 50, "eval_duration": 2**53},
        {"eval_count": 10**400, "eval_duration": 10},
        {"eval_count": 50.5, "eval_duration": 1e9},
        {"eval_count": float("nan"), "eval_duration": float("inf")},
    ],
)
def test_an_answer_without_usable_timings_has_no_speed(timings: dict[str, object]) -> None:
    verdict = watch(NDJSON, json.dumps({"done": True} | timings).encode()).verdict()
    assert verdict.whole
    assert verdict.tokens_per_second is None


@pytest.mark.parametrize(
    "terminal", [b"data: [DONE]", b'data: {"type":"message_stop"}', b'data: {"type":"response.completed"}']
)
def test_a_terminal_event_that_the_model_only_writes_about_is_none(terminal: bytes) -> None:
    body = b'data: {"choices":[{"delta":{"content":%s}}]}\n\n' % json.dumps(f"{terminal.decode()}\n\n").encode()
    assert watch(SSE, body).verdict() == Verdict(False, NO_TERMINAL)
    assert watch(SSE, body, terminal + b"\n\n").verdict().whole


@pytest.mark.parametrize(
    "line", [b'{"status":"success"}', b'{"done":true}', b'{"done":true}\n\n', b'{"done":true}\r\n']
)
def test_management_streams_end_with_success_and_inference_with_done(line: bytes) -> None:
    assert watch(NDJSON, b'{"status":"writing manifest"}\n', line).verdict().whole


@pytest.mark.parametrize("reason", ["load", "unload"])
def test_loading_and_unloading_are_whole_answers_without_figures(reason: str) -> None:
    line = ndjson({"model": "m", "response": "", "done": True, "done_reason": reason})
    for content_type in (NDJSON, JSON):
        watcher = watch(content_type, line)
        assert watcher.verdict() == Verdict(True)
        assert watcher.terminal_seen
        assert watcher.answer.timings == Timings()


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete"])
def test_a_response_that_was_cut_for_its_length_is_whole(kind: str) -> None:
    body = sse({"type": kind, "response": {"error": None, "usage": {"input_tokens": 3, "output_tokens": 4}}})
    watcher = watch(SSE, body)
    assert watcher.verdict() == Verdict(True, None, 4)
    assert watcher.answer.timings == Timings(3, None, 4)


@pytest.mark.parametrize(
    "body", [b"", b"\n", b'{"done":false}', b'{"done":"true"}', b'{"done":1}', b"null", b"[1]", b'{"done":tr', b"[DONE"]
)
def test_an_ndjson_stream_without_its_terminal_event_is_not_whole(body: bytes) -> None:
    assert watch(NDJSON, body).verdict() == Verdict(False, NO_TERMINAL)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"event: message_stop\n\n",
        b"[DONE]\n\n",
        b": data: [DONE]\n\n",
        b"data:  [DONE\n\n",
        b"Data: [DONE]\n\n",
        b'data: {"type":"message_stop","type":7}\n\n',
        b'data: {"response":{"type":"message_stop"}}\n\n',
    ],
)
def test_an_event_stream_without_its_terminal_event_is_not_whole(body: bytes) -> None:
    assert watch(SSE, body).verdict() == Verdict(False, NO_TERMINAL)


def test_the_answer_is_what_came_before_the_terminal_event() -> None:
    after = {"response": "more", "message": {"content": "more"}, "done": True, "eval_count": 9, "eval_duration": 9}
    watcher = watch(NDJSON, ndjson({"response": "all", "done": True, "eval_count": 4, "eval_duration": 8}, after), b"x")
    assert watcher.verdict() == Verdict(True, None, 4, 8e-9)
    assert watcher.answer.text == "all"
    assert watcher.answer.events == 2


# Errors


def test_an_error_in_the_last_line_of_a_stream_is_the_reason() -> None:
    body = b'{"status":"pulling manifest"}\n{"error":"pull model manifest: no such host"}\n'
    assert watch(NDJSON, body).verdict() == Verdict(False, "pull model manifest: no such host")


def test_an_error_counts_wherever_it_comes_and_the_first_is_the_reason() -> None:
    """The clients raise at it."""
    orders: list[list[dict[str, Any]]]
    orders = [[{"error": "a"}, {"done": True}], [{"done": True}, {"error": "a"}, {"error": "b"}]]
    for order in orders:
        assert watch(NDJSON, ndjson(*order)).verdict() == Verdict(False, "a")


@pytest.mark.parametrize(
    "event",
    [
        {"error": {"message": "no", "type": "api_error", "param": None, "code": None}},
        {"error": "no"},
        {"error": "no", "choices": []},
        {"type": "error", "error": {"type": "api_error", "message": "no"}},
        {"type": "error", "code": "server_error", "message": "no", "param": None},
        {"type": "response.failed", "response": {"status": "failed", "error": {"code": "x", "message": "no"}}},
        {"type": "something", "error": {"message": "no"}},
    ],
)
def test_an_error_event_of_every_protocol_is_the_reason(event: dict[str, Any]) -> None:
    body = sse({"choices": [{"delta": {"content": "x"}}]}, event)
    assert watch(SSE, body).verdict() == Verdict(False, "no")


@pytest.mark.parametrize("error", [{"code": 7}, {"message": 7}, ["x"], 7, True])
def test_an_error_of_another_shape_is_shown_as_it_came(error: object) -> None:
    verdict = watch(JSON, json.dumps({"error": error}).encode()).verdict()
    assert verdict.error is not None
    assert json.loads(verdict.error) == error


@pytest.mark.parametrize("error", ["null", '""', "{}", "false"])
def test_an_empty_error_is_none(error: str) -> None:
    """/v1/responses sends a null with every answer; the clients take the others for none too."""
    assert watch(JSON, b'{"id":"resp_1","error":%s,"output":[]}' % error.encode()).verdict() == Verdict(True)
    assert watch(NDJSON, b'{"done":true,"error":%s}' % error.encode()).verdict() == Verdict(True)


def test_a_long_error_is_cut() -> None:
    for error in ("x" * 10_000, {"message": "x" * 10_000}):
        verdict = watch(JSON, json.dumps({"error": error}).encode()).verdict()
        assert verdict.error == "x" * 500


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b'{"a', b'data: {"a', b'data: {"a":1}', b'data: {"a":1}\n'])
def test_an_error_event_put_behind_a_stream_that_broke_off_is_the_reason_from_then_on(
    dialect: Dialect, end: bytes
) -> None:
    content_type = NDJSON if dialect is Dialect.OLLAMA else SSE
    watcher = watch(content_type, end)
    watcher.feed(error_trailer(dialect, content_type, watcher.partial_event, "gone"))
    assert watcher.verdict() == watcher.verdict() == Verdict(False, "gone")


# Answers that are no streams


def test_an_answer_that_is_no_stream_is_whole_unless_it_is_an_error() -> None:
    assert watch(JSON, b'{"response":"hi","eval_count":4,"eval_duration":814000}').verdict() == Verdict(
        True, None, 4, 0.000814
    )
    assert watch("text/plain", b"Ollama is running").verdict() == Verdict(True)
    assert watch(JSON).verdict() == Verdict(True)
    assert watch(JSON, b'{"error"', b':"no"}').verdict() == Verdict(False, "no")


@pytest.mark.parametrize("content_type", ["", "text/plain", "image/png"])
def test_of_an_answer_of_unknown_type_nothing_is_said(content_type: str) -> None:
    watcher = watch(content_type, b'{"error":"no"}\n')
    assert not watcher.streamed
    assert watcher.verdict() == Verdict(True)
    assert watcher.answer.events == 0
    assert b"".join(watcher.captured.ends()) == b'{"error":"no"}\n'


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"error"', b'{"error":', b"[" * 100_000, b"\xff", b'{"a":NaN}'])
def test_an_answer_that_cannot_be_read_is_taken_for_whole(body: bytes) -> None:
    assert watch(JSON, body).verdict() == Verdict(True)


def test_an_answer_that_is_too_large_to_be_kept_is_not_read() -> None:
    body = b'{"error":"no","padding":"%s"}'
    fits = body % (b"x" * (READ_BYTES - len(body) + 2))
    assert len(fits) == READ_BYTES
    assert watch(JSON, fits).verdict() == Verdict(False, "no")
    watcher = watch(JSON, fits, b" ")
    assert watcher.verdict() == Verdict(True)
    assert watcher.captured.left_out == 1


THOUGHTFUL_ANSWERS: list[dict[str, Any]] = [
    {
        "message": {
            "content": "t",
            "thinking": "h",
            "tool_calls": [{"id": "i", "function": {"name": "f", "arguments": {"a": 1}}}],
        }
    },
    {
        "choices": [
            {
                "message": {
                    "content": "t",
                    "reasoning": "h",
                    "tool_calls": [{"id": "i", "index": 0, "function": {"name": "f", "arguments": '{"a":1}'}}],
                }
            }
        ]
    },
    {
        "type": "message",
        "content": [
            {"type": "thinking", "thinking": "h"},
            {"type": "text", "text": "t"},
            {"type": "tool_use", "id": "i", "name": "f", "input": {"a": 1}},
        ],
    },
    {
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "h"}]},
            {"type": "message", "content": [{"type": "output_text", "text": "t"}]},
            {"type": "function_call", "id": "fc_1", "call_id": "i", "name": "f", "arguments": '{"a":1}'},
        ],
        "error": None,
    },
]


@pytest.mark.parametrize("value", THOUGHTFUL_ANSWERS)
def test_whole_answers_tell_their_thinking_and_their_tool_calls(value: dict[str, Any]) -> None:
    watcher = watch(JSON, json.dumps(value).encode())
    assert watcher.verdict().whole
    assert watcher.terminal_seen
    answer = watcher.answer
    assert (answer.text, answer.thinking) == ("t", "h")
    assert answer.tool_calls == [ToolCall("f", '{"a":1}', "i")]


# Thinking and tool calls of streams


@pytest.mark.parametrize(
    ("content_type", "pieces"),
    [
        (NDJSON, [{"message": {"content": "", "thinking": "h1"}}, {"message": {"thinking": "h2", "content": "t"}}]),
        (NDJSON, [{"response": "", "thinking": "h1"}, {"response": "t", "thinking": "h2"}]),
        (SSE, [{"choices": [{"delta": {"content": "", "reasoning": r}}]} for r in ("h1", "h2")]),
        (
            SSE,
            [
                {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
                {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "h1"}},
                {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "h2"}},
                {"type": "content_block_delta", "delta": {"type": "text_delta", "text": ""}},
            ],
        ),
        (
            SSE,
            [
                {"type": "response.reasoning_summary_text.delta", "delta": "h1"},
                {"type": "response.reasoning_summary_text.delta", "delta": "h2"},
                {"type": "response.reasoning_summary_text.done", "text": "h1h2"},
            ],
        ),
    ],
)
def test_the_thinking_is_put_together_apart_from_the_text(content_type: str, pieces: list[dict[str, Any]]) -> None:
    answer = watch(content_type, (ndjson if content_type == NDJSON else sse)(*pieces)).answer
    assert answer.thinking == "h1h2"
    assert answer.text in ("", "t")
    assert answer.events == len(pieces)


def delta(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"tool_calls": list(calls)}}]}


FRAGMENTED: dict[str, tuple[list[dict[str, Any]], list[ToolCall]]] = {
    "chat, interleaved": (
        [
            delta({"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}),
            delta({"index": 1, "id": "b", "function": {"name": "g"}}),
            delta({"index": 0, "function": {"arguments": '{"x":'}}, {"index": 1, "function": {"arguments": "{"}}),
            delta({"index": 1, "function": {"arguments": "}"}}, {"index": 0, "function": {"arguments": "1}"}}),
        ],
        [ToolCall("f", '{"x":1}', "a"), ToolCall("g", "{}", "b")],
    ),
    "chat, each with the index 0": (
        [
            delta({"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}),
            delta({"index": 0, "id": "b", "function": {"name": "g", "arguments": "{}"}}),
        ],
        [ToolCall("f", "{}", "a"), ToolCall("g", "{}", "b")],
    ),
    "chat, the id and the name repeated": (
        [delta({"index": 0, "id": "a", "function": {"name": "f", "arguments": piece}}) for piece in ("{", "}")],
        [ToolCall("f", "{}", "a")],
    ),
    "messages": (
        [
            {
                "type": "content_block_start",
                "index": number,
                "content_block": {"type": "tool_use", "id": f"i{number}", "name": "f", "input": given},
            }
            for number, given in ((0, {}), (1, {"y": 2}))
        ]
        + [
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "input_json_delta", "partial_json": piece},
            }
            for piece in ('{"x"', ":1}")
        ],
        [ToolCall("f", '{"x":1}', "i0"), ToolCall("f", '{"y":2}', "i1")],
    ),
    "responses, broken off": (
        [
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": {"type": "function_call", "call_id": "a", "name": "f", "arguments": ""},
            },
            {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": '{"x"'},
            {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": ":1"},
        ],
        [ToolCall("f", '{"x":1', "a")],
    ),
    "responses": (
        [
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": {"type": "function_call", "call_id": "a", "name": "f", "arguments": ""},
            },
            {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": "{}"},
            {"type": "response.function_call_arguments.done", "output_index": 0, "arguments": "{}"},
            {
                "type": "response.output_item.done",
                "output_index": 0,
                "item": {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            },
            {"type": "response.output_item.done", "output_index": 1, "item": {"type": "message", "content": []}},
        ],
        [ToolCall("f", "{}", "a")],
    ),
}


@pytest.mark.parametrize("case", FRAGMENTED)
def test_tool_calls_that_come_in_fragments_are_put_together(case: str) -> None:
    pieces, expected = FRAGMENTED[case]
    assert watch(SSE, sse(*pieces)).answer.tool_calls == expected


def test_a_last_tool_call_of_ollama_may_come_with_the_terminal_event() -> None:
    call = {"function": {"index": 0, "name": "f", "arguments": {"k": [1, None, "é"]}}}
    watcher = watch(NDJSON, ndjson(*({"message": {"tool_calls": [call]}, "done": done} for done in (False, True))))
    assert watcher.answer.tool_calls == [ToolCall("f", '{"k":[1,null,"é"]}', "")] * 2


# The framing of events

FRAGMENTS = [
    b"data: ",
    b"data:",
    b"data",
    b'{"choices":[{"delta":{"content":"a"}}]}',
    b'{"response":"b","done":false}',
    b'{"type":"message_stop"}',
    b'{"done":true',
    b',"response":"c"}',
    b"[DONE]",
    b": ping",
    b"event: x",
    b"id",
    b"\n",
    b"\n",
    b"\n\n",
    b"\r\n",
    b"\r",
    b" ",
    b"\xff",
    b"x",
]


def plainly_read(content_type: str, body: bytes) -> list[Event]:
    """The same events, with the whole body at hand."""
    if content_type == NDJSON:
        texts = body.split(b"\n")
    else:
        texts, data = [], []
        for line in [*re.split(rb"\r\n|\r|\n", body), b""]:
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
            elif not line:
                texts.append(b"\n".join(data))
                data = []
    read = []
    for text in texts:
        if text.startswith(b"[DONE]"):
            read.append(Event(terminal=True))
            continue
        if len(text) < SHORTEST:
            continue
        try:
            value = json.loads(text.decode())  # of bytes it would guess the encoding
        except ValueError:
            continue
        if isinstance(value, dict):
            read.append(read_event(value))
    return read


@settings(derandomize=True, deadline=None, max_examples=400)
@given(st.sampled_from([NDJSON, SSE]), st.lists(st.sampled_from(FRAGMENTS), max_size=40), st.data())
@example(SSE, [b"data: ", b"{}", b"\n\n", b"event: x"], None)
@example(SSE, [b"event: x", b"\n", b"data: ", b"{}", b"\n"], None)
@example(SSE, [b"data: ", b"{}", b"\r", b"\n\n"], None)
def test_lines_are_read_as_the_formats_say_wherever_the_stream_was_split(
    content_type: str, fragments: list[bytes], data: st.DataObject | None
) -> None:
    body = b"".join(fragments)
    cuts = data.draw(st.lists(st.integers(0, len(body)))) if data else list(range(len(body)))
    expected = plainly_read(content_type, body)
    assert parse(content_type, body) == expected
    assert parse(content_type, *split(body, cuts)) == expected


def test_an_event_of_the_shortest_length_is_read_alike_wherever_it_was_split() -> None:
    for text in (b'{"id":"ma"}', b'{"id":"mab"}'):
        body = b"data: %s\n\n" % text
        for at in range(1, len(body)):
            assert parse(SSE, body[:at], body[at:]) == parse(SSE, body) == plainly_read(SSE, body)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_an_event_may_have_its_data_on_several_lines(newline: bytes) -> None:
    lines = [b": hello", b"event: x", b'data: {"choices":', b"data:[{", b"id: 7", b'data: "text":"a"}]}', b"", b""]
    body = newline.join(lines)
    for size in (1, 2, len(body)):
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        assert parse(SSE, *pieces) == [Event("a")]


def test_several_events_in_a_chunk_are_all_read() -> None:
    for content_type, body in (
        (NDJSON, ndjson(*({"response": word} for word in "abc"))),
        (SSE, sse(*({"choices": [{"text": word}]} for word in "abc"))),
    ):
        assert parser(content_type).feed(body) == [Event("a"), Event("b"), Event("c")]


def test_what_comes_after_the_end_begins_on_a_line_of_its_own() -> None:
    reader = parser(NDJSON)
    assert reader.feed(b'{"response":"a"}\n{"resp') == [Event("a")]
    assert reader.close() == []
    assert reader.feed(b'{"response":"b"}') == []
    assert reader.close() == [Event("b")]
    assert reader.close() == []


def test_what_is_no_stream_of_events_has_no_parser() -> None:
    assert event_parser("application/json") is None
    assert event_parser("") is None


# Hostile bodies


@settings(derandomize=True, deadline=None, max_examples=500)
@given(st.sampled_from([NDJSON, SSE, JSON, ""]), st.lists(st.binary(max_size=200), max_size=20))
def test_random_bytes_are_survived(content_type: str, chunks: list[bytes]) -> None:
    watcher = watch(content_type, *chunks)
    watcher.verdict()
    watcher.verdict()
    body = b"".join(chunks)
    assert b"".join(watcher.captured.ends()) == body


HOSTILE: list[Any] = [
    None,
    True,
    -1,
    10**400,
    1.5,
    float("nan"),
    "x",
    "",
    [],
    [7],
    [[]],
    {},
    {"a": 1},
    [{"index": "x"}],
]


def recorded_objects() -> list[dict[str, Any]]:
    """Of each shape one, and those of tool calls and thinking that none of the recordings has."""
    lines = [line for name in STREAMS + sorted(WHOLE_VERDICTS) for line in recording(name)[1].splitlines()]
    texts = [line.removeprefix(b"data: ") for line in lines]
    objects = [json.loads(text) for text in texts if text.startswith(b"{")]
    objects += [piece for pieces in FRAGMENTED.values() for piece in pieces[0]] + THOUGHTFUL_ANSWERS
    return list({shape(value): value for value in objects}.values())


def shape(value: object) -> str:
    if isinstance(value, dict):
        kind = value.get("type")
        return (
            f"{kind if isinstance(kind, str) else ''}{{{','.join(key + shape(value[key]) for key in sorted(value))}}}"
        )
    return f"[{','.join(sorted(set(map(shape, value))))}]" if isinstance(value, list) else type(value).__name__


def with_hostile_values(value: Any) -> Iterator[Any]:
    """The value with, in turn, each of its parts replaced by each hostile value."""
    yield from HOSTILE
    if isinstance(value, dict):
        for key, inner in value.items():
            for other in with_hostile_values(inner):
                yield value | {key: other}
    elif isinstance(value, list):
        for at, inner in enumerate(value[:3]):
            for other in with_hostile_values(inner):
                yield [*value[:at], other, *value[at + 1 :]]


@pytest.mark.chaos
def test_values_of_any_type_anywhere_are_survived() -> None:
    objects = recorded_objects()
    assert len(objects) > 30
    for value in objects:
        for hostile in filter(lambda hostile: isinstance(hostile, dict), with_hostile_values(value)):
            for read in (read_event, read_answer):
                answer = Answer()
                for part in (value, hostile, value):
                    answer.add(read(part))
                assert type(answer.text) is str
                assert type(answer.thinking) is str
                assert all(type(text) is str for call in answer.tool_calls for text in call)
                assert answer.error is None or (type(answer.error) is str and len(answer.error) <= 500)
                counts = (answer.timings.prompt_eval_count, answer.timings.eval_count)
                assert all(count is None or (type(count) is int and 0 <= count < 2**53) for count in counts)


KEYS = ["choices", "delta", "message", "content", "tool_calls", "function", "arguments", "index", "type", "error"]
VALUES = st.recursive(
    st.one_of(st.sampled_from(HOSTILE), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=8),
    max_leaves=20,
)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=10), max_size=3))
def test_objects_of_any_shape_are_survived(values: list[dict[str, Any]]) -> None:
    for content_type, body in (
        (NDJSON, ndjson(*values)),
        (SSE, sse(*values)),
        (JSON, json.dumps(values[0] if values else {}).encode()),
    ):
        watcher = watch(content_type, body)
        verdict = watcher.verdict()
        assert verdict.error is None or len(verdict.error) <= 500
        answer = watcher.answer
        json.dumps([answer.text, answer.thinking, answer.tool_calls], ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 10_000 + b"]" * 10_000,
        b'{"response":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"response":' + b'{"a":' * 10_000,
        b'{"response":"\\ud800"}',
        b'{"response":"\\udc00\\ud800"}',
        b'{"response":"\xed\xa0\x80"}',
        b'{"response":"\xff"}',
        b'{"response":"a\x00"}',
        b'{"eval_count":' + b"9" * 5000 + b"}",
        b'{"response":NaN}}',
        b'{"response":"a"} {"done":true}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_an_event_that_cannot_be_read_is_passed_over(data: bytes) -> None:
    for content_type, body, last in (
        (NDJSON, data + b"\n", b'{"response":"b","done":true}\n'),
        (SSE, b"data: " + data + b"\n\n", b'data: {"choices":[{"text":"b"}]}\n\ndata: [DONE]\n\n'),
    ):
        watcher = watch(content_type, body, last)
        assert watcher.verdict() == Verdict(True)
        assert watcher.answer.text == "b"


def test_deep_arguments_of_a_tool_call_are_kept_as_they_are() -> None:
    arguments = b"[" * 150 + b"]" * 150
    line = b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":%s}}]}}\n' % arguments
    assert watch(NDJSON, line).answer.tool_calls == [ToolCall("f", arguments.decode(), "")]


def large(content_type: str, size: int, end: bytes) -> bytes:
    """An event whose lines are so many bytes."""
    head = b'data: {"a":"' if content_type == SSE else b'{"a":"'
    return head + b"x" * (size - len(head) - 2) + b'"}' + end


@pytest.mark.parametrize(("content_type", "end"), [(NDJSON, b"\n"), (SSE, b"\n\n"), (SSE, b"\r\n\r\n")])
@pytest.mark.parametrize("chunk", [1, 7, 99, 100, 101, 1000])
@pytest.mark.parametrize("extra", [0, 1, 50, 1000])
def test_an_event_over_the_limit_is_passed_over_and_the_next_one_read(
    monkeypatch: pytest.MonkeyPatch, content_type: str, end: bytes, chunk: int, extra: int
) -> None:
    monkeypatch.setattr(events, "MAX_EVENT_BYTES", 100)
    last = b'{"response":"b","done":true}'
    body = large(content_type, 100 + extra, end) + (b"data: " if content_type == SSE else b"") + last + end
    reader = parser(content_type)
    read = []
    for at in range(0, len(body), chunk):
        read += reader.feed(body[at : at + chunk])
        assert reader.pending <= 100
    assert read[0] == (TOO_LARGE if extra else Event())
    assert read[1].text == "b"
    assert len(read) == 2


@pytest.mark.parametrize("chunk", [1, 30, 1000])
def test_the_lines_of_an_event_count_together(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(events, "MAX_EVENT_BYTES", 100)
    body = b"data: [\n" * 100 + b"\n" + b'data: {"choices":[{"text":"b"}]}\n\n'
    assert parse(SSE, *(body[at : at + chunk] for at in range(0, len(body), chunk))) == [TOO_LARGE, Event("b")]


def test_an_event_too_large_to_be_read_may_have_been_the_terminal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last event may carry the context of a long conversation."""
    monkeypatch.setattr(events, "MAX_EVENT_BYTES", 100)
    for content_type, end, start in (
        (NDJSON, b"\n", ndjson({"response": "a", "done": False})),
        (SSE, b"\n\n", sse({"type": "response.output_text.delta", "delta": "a"})),
    ):
        assert watch(content_type, start, large(content_type, 200, end)).verdict() == Verdict(True)
        assert watch(content_type, large(content_type, 200, end), start).verdict() == Verdict(False, NO_TERMINAL)
        broken = watch(content_type, start, large(content_type, 200, b""))
        assert broken.verdict() == broken.verdict() == Verdict(False, NO_TERMINAL)


@pytest.mark.parametrize("content_type", [NDJSON, SSE])
@pytest.mark.parametrize("piece", [b"x" * 100_000, b"data: " + b"x" * 99_993 + b"\n", b"\r" * 1000, b"data\n" * 1000])
@pytest.mark.chaos
def test_an_endless_event_takes_bounded_memory(content_type: str, piece: bytes) -> None:
    watcher = AnswerWatcher(content_type)
    reader = parser(content_type)
    times = 300
    for _ in range(times):
        watcher.feed(piece)
        reader.feed(piece)
        assert reader.pending <= MAX_EVENT_BYTES
    head, tail = watcher.captured.ends()
    assert len(head) + len(tail) <= READ_BYTES
    assert (piece * times).startswith(head)
    assert watcher.verdict() == Verdict(False, NO_TERMINAL)


CALL = {"index": 0, "function": {"name": "f" * 10, "arguments": "1" * 10}}


@pytest.mark.parametrize(
    ("content_type", "piece"),
    [
        (NDJSON, ndjson({"response": "é", "thinking": "ü"})),
        (NDJSON, ndjson({"message": {"tool_calls": [{"function": {"name": "f" * 99, "arguments": {"a": "b" * 99}}}]}})),
        (NDJSON, ndjson({"message": {"tool_calls": [{}]}})),
        (SSE, sse(delta(CALL))),
        (SSE, sse(*(delta(CALL | {"index": n, "id": f"i{n}"}) for n in range(50)))),
        (SSE, sse({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}})),
        (NDJSON, b"\n" * 100),
        (NDJSON, b"{}\n" * 100),
        (NDJSON, b'{"error":"x"}\n'),
        (SSE, b"data: 7\n\n"),
    ],
)
@pytest.mark.chaos
def test_an_endless_stream_takes_bounded_memory(
    monkeypatch: pytest.MonkeyPatch, content_type: str, piece: bytes
) -> None:
    """With limits a hundred times smaller, so that it is quick."""
    monkeypatch.setattr(answers, "MAX_TEXT", MAX_TEXT // 100)
    monkeypatch.setattr(answers, "MAX_TOOL_CALLS", MAX_TOOL_CALLS // 100)
    tracemalloc.start()
    try:
        watcher = AnswerWatcher(content_type, READ_BYTES // 100)
        for _ in range(0, 1_000_000, len(piece)):
            watcher.feed(piece)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 8 * READ_BYTES // 100  # with the memory that the interpreter keeps for tuples
    calls = watcher.answer.tool_calls
    assert len(calls) <= MAX_TOOL_CALLS // 100
    assert sum(len(part) for call in calls for part in call) <= MAX_TEXT // 100


def test_the_beginning_of_a_long_text_is_kept() -> None:
    answer = Answer()
    for _ in range(3):
        answer.add(Event("a" * (MAX_TEXT // 2 + 1), "b" * (MAX_TEXT // 2 + 1)))
    assert answer.text == "a" * MAX_TEXT
    assert answer.thinking == "b" * MAX_TEXT
    assert answer.events == 3


@pytest.mark.parametrize("content_type", [NDJSON, SSE])
@pytest.mark.parametrize("lines", [1, 1000])
@pytest.mark.chaos
def test_a_long_event_byte_by_byte_is_read_once(monkeypatch: pytest.MonkeyPatch, content_type: str, lines: int) -> None:
    """Were what is pending copied with each byte, 10^11 would be."""
    looked_at = 0

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(self: EventParser, chunk: bytes) -> Any:
            nonlocal looked_at
            looked_at += len(chunk)
            return method(self, chunk)

        return counted

    for kind in (events.NdjsonParser, events.SseParser):
        monkeypatch.setattr(kind, "_end_line", counting(kind._end_line))
        monkeypatch.setattr(kind, "_feed_lines", counting(kind._feed_lines))
    parsed = []

    def parse_once(data: bytes, **options: Any) -> Any:
        parsed.append(len(data))
        return from_json(data, **options)

    monkeypatch.setattr(events, "from_json", parse_once)
    value = b'{"response":"b","a":[' + b",\n".join([b"1" * (300_000 // lines)] * lines) + b"]}"
    body = value.replace(b"\n", b"") + b"\n" if content_type == NDJSON else b"data: " + value + b"\n\n"
    if content_type == SSE:
        body = body.replace(b",\n", b",\ndata: ")
    reader = parser(content_type)
    line = reader._line
    got = [event for at in range(len(body)) for event in reader.feed(body[at : at + 1])]
    assert reader._line is line
    assert len(parsed) == 1
    assert looked_at <= 2 * len(body)
    assert got == ([Event("b")] if lines > 1 else [])  # a number of 300,000 digits cannot be read


# Long answers

FILLER = b'{"done":false,"response":"' + b"x" * 70_000 + b'"}\n'
FINAL = b'{"done":true,"context":[' + b"1," * 500 + b'1],"eval_count":4,"eval_duration":1000000000}\n'


@pytest.mark.parametrize("over", [1, 10, len(FINAL) - 1, len(FINAL), len(FINAL) + 1, 4 * 1024 * 1024 + 7])
@pytest.mark.parametrize("chunk", [1000, 65_536, 64 * 1024 * 1024])
def test_the_end_is_found_wherever_the_kept_parts_begin_and_end(over: int, chunk: int) -> None:
    body = (FILLER * (1 + (READ_BYTES + over) // len(FILLER)))[-(READ_BYTES + over - len(FINAL)) :] + FINAL
    assert len(body) == READ_BYTES + over
    watcher = watch(NDJSON, *(body[at : at + chunk] for at in range(0, len(body), chunk)))
    assert watcher.verdict() == Verdict(True, None, 4, 1.0)
    head, tail = watcher.captured.ends()
    assert body.startswith(head)
    assert body.endswith(tail)
    assert (watcher.captured.left_out, len(head) + len(tail)) == (over, READ_BYTES)


@pytest.mark.parametrize("chunk", [65_536, 64 * 1024 * 1024])
def test_a_final_event_with_the_context_of_a_long_conversation_is_read(chunk: int) -> None:
    final = b'{"done":true,"context":[' + b"123456," * 1_000_000 + b'1],"eval_count":4,"eval_duration":1000000000}\n'
    body = b'{"done":false}\n' + final
    watcher = watch(NDJSON, *(body[at : at + chunk] for at in range(0, len(body), chunk)))
    assert watcher.verdict() == Verdict(True, None, 4, 1.0)


def test_a_context_that_is_not_built_says_what_one_says_that_is() -> None:
    def final(numbers: int) -> Event:
        context = b",".join(b"%d" % (n * 7) for n in range(numbers))
        (event,) = NdjsonParser().feed(b'{"done":true,"context":[' + context + b'],"eval_count":4}\n')
        return event

    few, many = final(1000), final(MAX_VALUES + 10)
    assert few.context == Context(1000, (*[b"%d" % (n * 7) for n in [*range(32), *range(968, 1000)]],))
    assert many.context is not None
    assert many.context.tokens == MAX_VALUES + 10
    assert many.context.ends[:32] == few.context.ends[:32]
    assert many.context.ends[-1] == b"%d" % ((MAX_VALUES + 9) * 7)
    assert many.timings == few.timings


@pytest.mark.parametrize("unit", [b"[],", b"1,", b'{"a":1},', b'"",'])
def test_an_event_of_too_many_values_is_not_built(unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    monkeypatch.setattr(events, "from_json", lambda data, **_: built.append(len(data)))
    many = b'{"x":[' + unit * (MAX_VALUES + 1) + b"1]}\n"
    assert NdjsonParser().feed(many) == [TOO_LARGE]
    assert SseParser().feed(b"data: " + many + b"\n") == [TOO_LARGE]
    assert built == []


@pytest.mark.parametrize("blank", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("parser", [SseParser, NdjsonParser])
def test_blank_lines_without_an_end_are_no_work(
    parser: type[EventParser], blank: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bytes] = []
    read = parser()
    monkeypatch.setattr(read, "_end_line", ended.append)
    for _ in range(10):
        assert read.feed(blank * 20_000) == []
    assert len(ended) <= 30
    assert read.pending <= 20_000 * len(blank) * 10


def test_lines_that_are_no_object_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "from_json", lambda data, **_: pytest.fail(f"{data!r} is read"))
    for line in (b"1", b"[]", b'"x"', b":", b"null", b"nonsense"):
        assert NdjsonParser().feed(line + b"\n") == []
