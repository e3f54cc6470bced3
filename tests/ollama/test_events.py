from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_balancer.ollama.events import KEEP_BYTES, TAIL_BYTES, AnswerWatcher, Verdict

NDJSON, SSE, JSON = "application/x-ndjson", "text/event-stream", "application/json; charset=utf-8"
RECORDINGS = Path(__file__).parent / "recordings"
NO_TERMINAL = "the stream ended without its terminal event"

# Bodies that a real server sent, and what is to be said of each.
VERDICTS = {
    "chat_stream.ndjson": Verdict(True, None, 6, 0.002203),
    "v1_chat_stream.sse": Verdict(True),
    "v1_messages_stream.sse": Verdict(True),
    "v1_responses_stream.sse": Verdict(True),
    "kill_runner_midstream.ndjson": Verdict(False, "an error was encountered while running the model: unexpected EOF"),
    "kill_runner_v1_stream.sse": Verdict(False, NO_TERMINAL),
    "kill_runner_v1_messages_stream.sse": Verdict(False, NO_TERMINAL),
    "kill_runner_v1_responses_stream.sse": Verdict(False, NO_TERMINAL),
}


def recording(name: str) -> tuple[str, bytes]:
    return SSE if name.endswith(".sse") else NDJSON, (RECORDINGS / name).read_bytes()


def watch(content_type: str, *chunks: bytes) -> AnswerWatcher:
    watcher = AnswerWatcher(content_type)
    for chunk in chunks:
        watcher.feed(chunk)
    return watcher


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.sampled_from(sorted(VERDICTS)), st.lists(st.integers(0, 5000), max_size=30))
def test_the_verdict_does_not_depend_on_how_the_stream_was_split(name: str, cuts: list[int]) -> None:
    content_type, body = recording(name)
    places = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    watcher = watch(content_type, *(body[a:b] for a, b in pairwise(places)))
    assert watcher.verdict() == VERDICTS[name]
    assert watcher.kept == body
    assert not watcher.truncated
    assert watcher.bytes_seen == len(body)


@pytest.mark.parametrize("name", [name for name, verdict in VERDICTS.items() if verdict.whole])
def test_a_stream_that_breaks_off_anywhere_before_its_terminal_event_is_not_whole(name: str) -> None:
    content_type, body = recording(name)
    last_event = body.rstrip().rfind(b"\n") + 1
    if content_type == SSE:
        last_event = body.rstrip().rfind(b"\n\n") + 2
    for end in range(last_event + 1):
        verdict = watch(content_type, body[:end]).verdict()
        assert (verdict.whole, verdict.error) == (False, NO_TERMINAL)


def test_tokens_per_second_come_from_the_final_event() -> None:
    verdict = watch(*recording("chat_stream.ndjson")).verdict()
    assert verdict.tokens_per_second == pytest.approx(6 / 0.002203)


@pytest.mark.parametrize(
    "timings",
    [{}, {"eval_count": 5}, {"eval_count": 5, "eval_duration": 0}, {"eval_count": True, "eval_duration": "x"}],
)
def test_an_answer_without_usable_timings_has_no_speed(timings: dict[str, object]) -> None:
    verdict = watch(NDJSON, json.dumps({"done": True} | timings).encode()).verdict()
    assert verdict.whole
    assert verdict.tokens_per_second is None


@pytest.mark.parametrize("terminal", [b"data: [DONE]", b"event: message_stop", b"event: response.completed"])
def test_a_terminal_event_that_the_model_only_writes_about_is_none(terminal: bytes) -> None:
    body = b'data: {"choices":[{"delta":{"content":"' + terminal + b'"}}]}\n\n'
    assert watch(SSE, body).verdict() == Verdict(False, NO_TERMINAL)
    assert watch(SSE, body, terminal + b"\n\n").verdict().whole


@pytest.mark.parametrize("line", [b'{"status":"success"}', b'{"done":true}', b'{"done":true}\n\n'])
def test_management_streams_end_with_success_and_inference_with_done(line: bytes) -> None:
    assert watch(NDJSON, b'{"status":"writing manifest"}\n', line).verdict().whole


@pytest.mark.parametrize("body", [b"", b"\n", b'{"done":false}', b'{"done":"true"}', b"null", b"[1]", b'{"done":tr'])
def test_an_ndjson_stream_without_its_terminal_event_is_not_whole(body: bytes) -> None:
    assert watch(NDJSON, body).verdict() == Verdict(False, NO_TERMINAL)


def test_an_error_in_the_last_line_of_a_stream_is_the_reason() -> None:
    body = b'{"status":"pulling manifest"}\n{"error":"pull model manifest: no such host"}\n'
    assert watch(NDJSON, body).verdict() == Verdict(False, "pull model manifest: no such host")


def test_an_answer_that_is_no_stream_is_whole_unless_it_is_an_error() -> None:
    assert watch(JSON, b'{"response":"hi","eval_count":4,"eval_duration":814000}').verdict() == Verdict(
        True, None, 4, 0.000814
    )
    assert watch("text/plain", b"Ollama is running").verdict() == Verdict(True)
    assert watch(JSON).verdict() == Verdict(True)
    assert watch(JSON, b'{"error":"no"}').verdict() == Verdict(False, "no")


def test_a_null_error_is_no_error() -> None:
    """/v1/responses sends one with every answer."""
    assert watch(JSON, b'{"id":"resp_1","status":"completed","error":null,"output":[]}').verdict() == Verdict(True)


def test_a_long_error_is_cut() -> None:
    verdict = watch(JSON, json.dumps({"error": "x" * 10_000}).encode()).verdict()
    assert verdict.error == "x" * 500


# Long answers

FILLER = b'{"done":false,"response":"' + b"x" * 70_000 + b'"}\n'
FINAL = b'{"done":true,"context":[' + b"1," * 500 + b'1],"eval_count":4,"eval_duration":1000000000}\n'


@pytest.mark.parametrize("over", [1, 10, len(FINAL) - 1, len(FINAL), len(FINAL) + 1, TAIL_BYTES, 2 * TAIL_BYTES + 7])
@pytest.mark.parametrize("chunk", [1000, 65_536, 64 * 1024 * 1024])
def test_the_end_is_found_wherever_the_kept_beginning_ends(over: int, chunk: int) -> None:
    body = (FILLER * (1 + (KEEP_BYTES + over) // len(FILLER)))[-(KEEP_BYTES + over - len(FINAL)) :] + FINAL
    assert len(body) == KEEP_BYTES + over
    watcher = watch(NDJSON, *(body[at : at + chunk] for at in range(0, len(body), chunk)))
    assert watcher.verdict() == Verdict(True, None, 4, 1.0)
    assert watcher.truncated
    assert watcher.kept == body[:KEEP_BYTES]
    assert watcher.bytes_seen == len(body)
    assert watcher.ends_in_newline


@pytest.mark.parametrize("chunk", [65_536, 64 * 1024 * 1024])
def test_a_final_event_with_the_context_of_a_long_conversation_is_read(chunk: int) -> None:
    final = b'{"done":true,"context":[' + b"123456," * 200_000 + b'1],"eval_count":4,"eval_duration":1000000000}\n'
    body = b'{"done":false}\n' + final
    watcher = watch(NDJSON, *(body[at : at + chunk] for at in range(0, len(body), chunk)))
    assert watcher.verdict() == Verdict(True, None, 4, 1.0)


def test_what_is_kept_of_an_endless_answer_is_bounded() -> None:
    watcher = AnswerWatcher(NDJSON)
    chunk = b"x" * 100_000
    for _ in range(200):
        watcher.feed(chunk)
    assert len(watcher.kept) == KEEP_BYTES
    assert watcher._tail_size < TAIL_BYTES + len(chunk)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [((), True), ((b"a\n",), True), ((b"a",), False), ((b"a\n", b""), True), ((b"a\n", b"b"), False)],
)
def test_whether_the_last_line_is_ended_is_known(chunks: tuple[bytes, ...], expected: bool) -> None:
    assert watch(NDJSON, *chunks).ends_in_newline is expected
