"""What is read from saved flows, whatever is in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ollama_balancer.lab.flows import read
from ollama_balancer.lab.recording import Recorded, Recording
from tests.lab.flowfiles import NOON, final, flow, record, write

LONG = "word " * 100


def read_flows(tmp_path: Path, *flows: Any) -> Recording:
    return read([write(tmp_path / "flows", flows)])


def only(recording: Recording) -> Recorded:
    [request] = recording.requests
    return request


def test_a_flow_tells_who_asked_for_what_and_what_came_of_it(tmp_path: Path) -> None:
    request = only(read_flows(tmp_path, flow(5, metadata=record(waited_ms=250.0))))
    assert (request.at, request.model, request.agent, request.mode) == (NOON + 5, "m:latest", "a", "metrics")
    assert (request.sent, request.began, request.ended) == (NOON + 5.25, NOON + 6, NOON + 7)
    assert (request.prompt, request.output) == (100, 50)
    assert request.served and request.streamed and request.warm
    assert request.timings.prompt_eval_duration == 1.0


def test_clients_are_told_apart_by_their_name_in_the_record_else_by_their_address(tmp_path: Path) -> None:
    recording = read_flows(tmp_path, flow(client="key one"), flow(client="key two"), flow(), flow())
    assert len({request.client for request in recording.requests}) == 3


def test_what_runs_no_model_is_passed_over(tmp_path: Path) -> None:
    other = flow()
    del other.metadata["balancer"]
    unload = flow(body={"model": "m", "keep_alive": 0})
    recording = read_flows(tmp_path, other, unload, flow(path="/api/tags"), flow(metadata=record(model=None)))
    assert (recording.flows, recording.requests, recording.odd) == (4, [], 0)


def test_a_callers_mistake_is_left_out_and_counted(tmp_path: Path) -> None:
    recording = read_flows(tmp_path, flow(status=404), flow(status=501), flow(status=503, metadata=record(agent=None)))
    assert recording.refused == 2
    assert not only(recording).served


@pytest.mark.parametrize(
    ("path", "kind", "answer", "output", "streamed"),
    [
        ("/v1/chat/completions", "application/json", b'{"choices": [], "usage": {"completion_tokens": 7}}', 7, False),
        (
            "/v1/chat/completions",
            "text/event-stream",
            b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n' * 5 + b"data: [DONE]\n\n",
            5,
            True,
        ),
        (
            "/v1/messages",
            "text/event-stream",
            b'data: {"type": "message_delta", "usage": {"output_tokens": 9}}\n\ndata: {"type": "message_stop"}\n\n',
            9,
            True,
        ),
        ("/api/embed", "application/json", b'{"embeddings": [[1]], "prompt_eval_count": 3}', 0, False),
        ("/api/generate", "application/x-ndjson", b'{"response": "a"}\n{"respon', None, True),
        ("/api/generate", "application/x-ndjson", b"\xff\x00", None, True),
        ("/v1/audio/transcriptions", "text/plain", b"words", None, False),
    ],
)
def test_the_tokens_of_every_kind_of_answer_are_counted_as_far_as_it_tells(
    tmp_path: Path, path: str, kind: str, answer: bytes, output: int | None, streamed: bool
) -> None:
    request = only(read_flows(tmp_path, flow(answer=answer, path=path, kind=kind)))
    assert (request.output, request.streamed) == (output, streamed)


def chat(at: float, *contents: str) -> Any:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return flow(at, {"model": "m", "messages": messages}, path="/api/chat")


def test_requests_of_one_conversation_are_known_by_what_they_repeat(tmp_path: Path) -> None:
    other, again, first = chat(1, "else " * 100), chat(2, LONG, "because", "and?"), chat(0, LONG)
    recording = read_flows(tmp_path, other, again, first)
    one, two, three = recording.requests
    assert one.conversation == three.conversation != two.conversation
    assert one.known == two.known == 0
    assert three.known == one.demand.new_prefixes[-1][1]
    assert three.demand.prefixes == one.demand.new_prefixes


def test_of_conversations_that_begin_alike_only_the_beginning_is_known(tmp_path: Path) -> None:
    recording = read_flows(tmp_path, chat(0, LONG, "one", "two " * 300), chat(1, LONG, "other", "three " * 300))
    assert recording.requests[1].known == recording.requests[0].demand.new_prefixes[0][1]


def test_a_conversation_is_known_by_the_context_of_its_answer(tmp_path: Path) -> None:
    context = list(range(100))
    first = flow(0, answer=[final() | {"context": context}])
    recording = read_flows(tmp_path, first, flow(1, {"model": "m", "prompt": "and?", "context": context}))
    one, two = recording.requests
    assert one.conversation == two.conversation
    assert two.known == 100


def test_a_file_that_breaks_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", [flow(0), flow(1), flow(2)]).read_bytes()
    for size in (len(whole) - 1, len(whole) * 5 // 6):
        (tmp_path / "cut").write_bytes(whole[:size])
        recording = read([tmp_path / "cut"])
        assert len(recording.requests) == 2
        [problem] = recording.problems
        assert "ends in the middle of a flow, or is damaged there; 2 flows before that were read" in problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "contains no flows"),
        (b"hello", "is not a file of mitmproxy flows"),
        (b'{"log": 3}', "is not a file of mitmproxy flows"),
        (b"999999999999:", "is not a file of mitmproxy flows"),
        (b"2:{}}", "is not a file of mitmproxy flows"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_of_something_else_is_a_problem_in_a_line(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    recording = read([path, write(tmp_path / "good", [flow()])])
    assert len(recording.requests) == 1
    assert len(recording.problems) == 1
    assert recording.problems[0].startswith(f"{path}: {problem}")


def test_a_record_that_no_balancer_writes_is_left_out_and_counted(tmp_path: Path) -> None:
    odd = [
        "text",
        record(model=7),
        record(model="x" * 1000),
        record(first_byte_ms="soon"),
        record(total_ms=float("nan")),
        record(total_ms=-1),
        record(waited_ms=1e300),
    ]
    recording = read_flows(tmp_path, *(flow(metadata=each) for each in odd), flow())
    assert recording.odd == len(odd)
    assert len(recording.requests) == 1


def test_a_request_that_came_at_no_time_is_left_out_and_counted(tmp_path: Path) -> None:
    flows = [flow(), flow(), flow()]
    flows[0].request.timestamp_end = float("nan")
    flows[1].request.timestamp_end = 1e300
    recording = read_flows(tmp_path, *flows)
    assert (recording.odd, len(recording.requests)) == (2, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["a", "b", "m"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["agent", "reason", "slots"]), inner),
    max_leaves=6,
)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.dictionaries(st.sampled_from(sorted(record())), JSON, max_size=6))
def test_whatever_a_record_holds_reading_it_raises_nothing(tmp_path: Path, fields: dict[str, Any]) -> None:
    recording = read_flows(tmp_path, flow(metadata=record(**fields)), flow())
    assert len(recording.requests) + recording.odd >= 1
    for request in recording.requests:
        assert request.waited >= 0 and request.at <= request.sent <= request.ended < float("inf")


@settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 3000), st.binary(max_size=4))
def test_whatever_is_damaged_in_a_file_reading_it_raises_nothing(tmp_path: Path, at: int, damage: bytes) -> None:
    content = write(tmp_path / "flows", [flow(0), flow(1)]).read_bytes()
    (tmp_path / "damaged").write_bytes(content[:at] + damage + content[at + len(damage) :])
    recording = read([tmp_path / "damaged"])
    assert len(recording.requests) + recording.odd <= 2
