"""Flows of files as lines of JSON and as HAR."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import tracemalloc
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.io import FlowReader

from ollama_balancer.ollama.truncation import truncated
from ollama_balancer.saved_flows import reading, records
from ollama_balancer.saved_flows.export import Counts, export
from ollama_balancer.saved_flows.reading import read_flows
from tests.lab.flowfiles import final, flow, record, write
from tests.markdown import DOCS, blocks, code, table

QUESTION = {"role": "user", "content": "Why?"}
CHAT = {"model": "m", "messages": [QUESTION], "temperature": 0.5}
EVENTS = "text/event-stream"


def exported(path: Path, flows: Sequence[http.HTTPFlow], *, har: bool = False) -> tuple[str, Counts, list[str]]:
    out, said = BytesIO(), list[str]()
    counts = export([write(path / "flows", flows)], out, said.append, har=har)
    return out.getvalue().decode(), counts, said


def line(path: Path, each: http.HTTPFlow) -> dict[str, Any]:
    text, counts, said = exported(path, [each])
    assert (counts, said) == (Counts(1, 0, 0), [])
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def events(*data: object) -> bytes:
    return b"".join(b"data: %s\n\n" % (each if isinstance(each, bytes) else json.dumps(each).encode()) for each in data)


def choice(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"delta": delta}]}


def test_a_chat_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Köln"}}}
    answer = [
        {"message": {"role": "assistant", "thinking": "Hm."}, "done": False},
        {"message": {"role": "assistant", "content": "Because"}, "done": False},
        {"message": {"role": "assistant", "content": " so."}, "done": False},
        {"message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done": False},
        {**final(100, 50, load=1.5), "message": {"role": "assistant", "content": ""}},
    ]
    known = record(
        request_id="r1",
        key="alice",
        client="alice",
        why="m is loaded",
        waited_ms=250.0,
        tokens_per_second=50.0,
        attempts=2,
        failures=[{"agent": "b", "reason": "refused"}],
    )
    assert line(tmp_path, flow(body=CHAT, answer=answer, metadata=known, path="/api/chat")) == {
        "time": "2026-02-02T02:40:00.000Z",
        "request_id": "r1",
        "key": "alice",
        "client": "alice",
        "path": "/api/chat",
        "model": "m",
        "agent": "a",
        "mode": "metrics",
        "why": "m is loaded",
        "attempts": 2,
        "failures": [{"agent": "b", "reason": "refused"}],
        "status": 200,
        "outcome": "succeeded",
        "problem": None,
        "messages": [QUESTION],
        "parameters": {"model": "m", "temperature": 0.5},
        "answer": "Because so.",
        "thinking": "Hm.",
        "tool_calls": [{"id": None, "name": "weather", "arguments": {"city": "Köln"}}],
        "bytes_left_out": 0,
        "prompt_tokens": 100,
        "output_tokens": 50,
        "tokens_per_second": 50.0,
        "queue_seconds": 0.25,
        "ttft_seconds": 1.0,
        "load_seconds": 1.5,
        "total_seconds": 2.0,
    }


@pytest.mark.parametrize(
    ("path", "body", "messages"),
    [
        (
            "/api/generate",
            {"system": "Be brief.", "prompt": "Why?", "images": ["aGk="]},
            [{"role": "system", "content": "Be brief."}, QUESTION | {"images": ["aGk="]}],
        ),
        ("/v1/completions", {"prompt": ["Why?", "How?"]}, [QUESTION, {"role": "user", "content": "How?"}]),
        ("/api/embed", {"input": ["Why?"]}, [QUESTION]),
        (
            "/v1/responses",
            {"instructions": "Be brief.", "input": [QUESTION]},
            [{"role": "system", "content": "Be brief."}, QUESTION],
        ),
        ("/v1/responses", {"input": "Why?"}, [QUESTION]),
        (
            "/v1/messages",
            {"system": [{"type": "text", "text": "Be brief."}], "messages": [QUESTION]},
            [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, QUESTION],
        ),
        (
            "/api/chat",
            {"messages": "odd", "system": 3},
            [{"role": "system", "content": 3}, QUESTION | {"content": "odd"}],
        ),
        ("/api/chat", [1], []),
    ],
)
def test_the_prompt_of_each_protocol_is_a_list_of_messages(
    tmp_path: Path, path: str, body: Any, messages: list[Any]
) -> None:
    sent = {"model": "m", "stream": False, **body} if isinstance(body, dict) else body
    found = line(tmp_path, flow(body=sent, path=path))
    assert found["messages"] == messages
    assert found["parameters"] == ({"model": "m", "stream": False} if isinstance(body, dict) else {})


@pytest.mark.parametrize(
    ("answer", "kind", "text", "tokens"),
    [
        (
            events(
                choice(content="Be"),
                choice(content="cause"),
                {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
                b"[DONE]",
            ),
            EVENTS,
            "Because",
            (3, 2),
        ),
        (
            json.dumps(
                {
                    "choices": [{"message": {"content": "Because"}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
                }
            ).encode(),
            "application/json",
            "Because",
            (3, 2),
        ),
        (b'{"embeddings":[[0.1]],"prompt_eval_count":3}', "application/json", "", (3, None)),
    ],
)
def test_the_answer_is_put_together_from_its_stream(
    tmp_path: Path, answer: bytes, kind: str, text: str, tokens: tuple[int, int | None]
) -> None:
    found = line(tmp_path, flow(body=CHAT, answer=answer, kind=kind, path="/v1/chat/completions"))
    assert (found["answer"], found["prompt_tokens"], found["output_tokens"]) == (text, *tokens)
    assert found["load_seconds"] is None


def test_of_a_long_answer_both_ends_are_there_and_how_much_is_not(tmp_path: Path) -> None:
    head, tail = b'{"response":"One ","done":false}\n{"respo', b'nse":"x"}\n{"response":"three.","done":false}\n'
    body = truncated(head, tail + json.dumps(final()).encode() + b"\n", 1234)
    found = line(tmp_path, flow(answer=body))
    assert (found["answer"], found["bytes_left_out"], found["output_tokens"]) == ("One three.", 1234, 50)


def test_compressed_bodies_are_unpacked_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_UNPACKED", 1_000_000)
    each = flow()
    each.request.raw_content = gzip.compress(json.dumps(CHAT).encode())
    each.request.headers["content-encoding"] = "gzip"
    assert each.response
    each.response.raw_content = gzip.compress(b" " * 20_000_000, compresslevel=1)
    each.response.headers["content-encoding"] = "gzip"
    tracemalloc.start()
    try:
        found = line(tmp_path, each)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert (found["messages"], found["answer"]) == ([QUESTION], "")


def test_a_request_without_an_answer_and_records_that_are_odd(tmp_path: Path) -> None:
    broken = flow(metadata=record(outcome="failed", problem="refused", first_byte_ms=None, total_ms=float("inf")))
    broken.response = None
    found = line(tmp_path, broken)
    assert (found["status"], found["problem"], found["answer"], found["total_seconds"]) == (None, "refused", "", None)
    odd = {key: [3] for key in record()}
    assert line(tmp_path, flow(metadata=odd))["failures"] == []
    nobodys = flow(metadata="odd")
    text, counts, _ = exported(tmp_path, [nobodys, flow(), nobodys])
    assert (len(text.splitlines()), counts) == (1, Counts(1, 2, 0))


def test_har_can_be_loaded_with_the_balancers_record_of_each_request(tmp_path: Path) -> None:
    body = json.dumps(CHAT)
    first, second = flow(body=CHAT, path="/api/chat"), flow(1.0, body=CHAT, path="/v1/chat/completions")
    first.comment, second.response = "→ a", None
    text, counts, said = exported(tmp_path, [first, second], har=True)
    assert (counts.written, said) == (2, [])
    log = json.loads(text)["log"]
    assert (log["version"], log["creator"]["name"]) == ("1.2", "mitmproxy")
    entry, other = log["entries"]
    assert (entry["comment"], entry["_balancer"]["agent"]) == ("→ a", "a")
    assert entry["request"]["postData"]["text"] == body
    assert entry["response"]["status"] == 200
    assert other["response"]["status"] == 0
    loaded = list(FlowReader(BytesIO(text.encode())).stream())
    assert [each.request.text for each in loaded if isinstance(each, http.HTTPFlow)] == [body, body]
    assert json.loads(exported(tmp_path, [], har=True)[0])["log"]["entries"] == []


@pytest.mark.parametrize("har", [False, True])
@pytest.mark.chaos
def test_memory_does_not_grow_with_the_file(tmp_path: Path, har: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "COLLECTED_BYTES", 1_000_000)
    body = {"model": "m", "prompt": "x" * 200_000}
    path = write(tmp_path / "flows", (flow(body=body) for _ in range(30)))
    with (tmp_path / "out").open("wb") as out:
        tracemalloc.start()
        try:
            assert export([path], out, pytest.fail, har=har).written == 30
            assert tracemalloc.get_traced_memory()[1] < 3_000_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("damage", [b"", b"7", b"70:{", b"999999999999:", b"nonsense", b"3:abc,"])
def test_what_is_before_the_damage_is_read_and_not_more_than_there_is(tmp_path: Path, damage: bytes) -> None:
    path = write(tmp_path / "flows", [flow(), flow()])
    whole = path.read_bytes()
    path.write_bytes(whole + damage)
    said: list[str] = []
    assert len(list(read_flows(path, said.append))) == 2
    assert len(said) == bool(damage)
    path.write_bytes(whole[: len(whole) // 2 + 5] + damage)
    assert len(list(read_flows(path, said.append))) == 1
    assert said[-1].endswith("ends in the middle of a flow, or is damaged there; 1 flows before that were read")


@pytest.mark.e2e
def test_every_field_is_documented_and_the_examples_work(tmp_path: Path) -> None:
    page = DOCS / "inspection.md"
    answer = [{"message": {"content": "So."}}, final(output=50)]
    slow = record(why="loads m", first_byte_ms=12_000.0, key="alice")
    text, _, _ = exported(
        tmp_path,
        [
            flow(body=CHAT, metadata=slow, answer=answer, path="/api/chat"),
            flow(1.0, metadata=record(outcome="failed", problem="refused", agent=None), answer=b""),
        ],
    )
    lines = [json.loads(each) for each in text.splitlines()]
    assert [name for row in table(page, "field") for name in code(row[0])] == list(lines[0])
    examples = [block.text for block in blocks(page) if block.text.startswith("jq ")]
    assert len(examples) == 5
    names = {name for each in examples for name in re.findall(r"(?<![\w\])])\.([a-z_]+)", each.rpartition(" ")[0])}
    assert names - {"content"} <= lines[0].keys()
    if shutil.which("jq") is None:
        return
    (tmp_path / "yesterday.jsonl").write_text(text)
    results = [
        subprocess.run(["sh", "-c", each], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for each in examples
    ]
    began, tokens, failed, texts, training = results
    assert json.loads(began) == [lines[0]["time"], "m", "a", "loads m", 12.0, 0.01]
    assert [json.loads(each) for each in re.findall(r"\{[^}]*\}", tokens)] == [
        {"key": None, "model": "m", "tokens": 0},
        {"key": "alice", "model": "m", "tokens": 50},
    ]
    assert json.loads(failed) == {"problem": "refused", "count": 1}
    assert texts == "> Why?\nSo.\n\n"
    assert json.loads(training) == {"messages": [QUESTION, {"role": "assistant", "content": "So."}]}
