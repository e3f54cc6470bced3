"""What people see of requests and answers, by the recorded exchanges of a real Ollama."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_balancer.mitm.inspection.rendering import render_answer, render_request
from ollama_balancer.ollama.truncation import split_gap, truncated
from tests.mitm.inspection.exchanges import exchange

RECORD: dict[str, Any] = {
    "agent": "gpu-1",
    "url": "http://10.0.0.1:11434",
    "mode": "adaptive",
    "why": "warm here, next best gpu-2 would load it: ~+8.3 s",
    "attempts": 2,
    "waited_ms": 1200,
    "failures": [{"agent": "gpu-3", "reason": "refused"}],
    "outcome": "succeeded",
    "client": "10.0.0.9",
    "options": [
        {"agent": "gpu-1", "cost": 0.2, "wait": 0.0, "load": 0.0, "prefill": 0.1, "answer": 0.1, "harm": 0.0}
        | {"free": True, "observations": 12, "first": 0.1, "loads": 0.0, "guess": False},
        {"agent": "gpu-2", "cost": 14.9, "wait": 0.0, "load": 12.0, "prefill": 0.4, "answer": 2.5, "harm": 0.0}
        | {"free": False, "observations": 0, "first": 8.4, "loads": 8.0, "guess": True},
    ],
    "first_byte_ms": 310.0,
    "total_ms": 1200.0,
    "tokens_per_second": 44.0,
}

DECISION = """== Decision ==
→ gpu-1 (http://10.0.0.1:11434) · adaptive · warm here, next best gpu-2 would load it: ~+8.3 s
waited 1.2 s · 2 attempts · 10.0.0.9 · succeeded
tried gpu-3: refused

agent  TTFT s  wait s  load s  prompt s  free  seen  cost   answer  interference
gpu-1  0.10    0.00    0.00    0.10      yes   12    0.20   0.10    0.00
gpu-2  ~8.40   0.00    ~8.00   ~0.40     no    0     14.90  2.50    0.00
"""


def answer(name: str, record: object = None) -> str:
    _, request, kind, body = exchange(name)
    return render_answer(body, kind.lower(), request, record)


def request(value: object, record: object = None) -> str:
    return render_request(json.dumps(value).encode(), record)


def test_a_streamed_tool_call_is_shown_with_the_decision_and_the_figures() -> None:
    assert (
        answer("chat_tools_stream", RECORD)
        == DECISION
        + """
== Conversation ==
user:
  the quick brown

== Answer ==
calls get_weather:
  {
    "city": "Paris"
  }

== Timings ==
load    0.26 s
prompt  206 tokens in 4.9 ms, 42,101.0 tokens/s
answer  2 tokens in 1.5 ms
host    0.27 s in total
first   0.31 s after the request arrived
total   1.20 s after the request arrived"""
    )


@pytest.mark.parametrize(
    ("name", "text", "figures"),
    [
        ("generate_stream", " in far near hills", "answer  6 tokens in "),
        ("generate_nostream", "assistant:", "prompt  "),
        ("chat_stream", "assistant:", "tokens/s"),
        ("v1_chat_stream", " the dog old quick joy", "speed   44.0 tokens/s, as the balancer saw them arrive"),
        ("v1_messages_stream", " bright who dog wind home", "answer  5 tokens"),
        ("v1_responses_stream", " in while hills of each", "answer  5 tokens"),
    ],
)
def test_an_answer_of_each_api_is_shown_as_text_with_its_figures(name: str, text: str, figures: str) -> None:
    shown = answer(name, RECORD)
    assert text in shown
    assert figures in shown
    assert '"model"' not in shown
    assert "! " not in shown


def test_the_speed_of_reading_leaves_out_what_was_cached() -> None:
    timings = {"cache_n": 2900, "prompt_n": 100, "prompt_ms": 50.0, "predicted_n": 20, "predicted_ms": 400.0}
    body = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": {}, "timings": timings}).encode()
    shown = render_answer(body, "application/json", b"", None)
    assert "prompt  3,000 tokens, 2,900 of them cached, in 50.0 ms, 2,000.0 tokens/s" in shown


@pytest.mark.parametrize(
    ("name", "expected"),
    [("embed_multi", "2 vectors of"), ("embed_single", "1 vector of"), ("embeddings_legacy", "1 vector of")],
)
def test_of_embeddings_the_number_and_the_size_is_shown(name: str, expected: str) -> None:
    shown = answer(name)
    assert f"== Answer ==\n{expected} " in shown
    assert "embedding" not in shown.partition("== Answer ==")[2]


@pytest.mark.parametrize("name", ["generate_no_model", "chat_no_model", "emptybody_v1_chat", "emptybody_v1_messages"])
def test_an_error_is_shown_as_its_message(name: str) -> None:
    error = json.loads(exchange(name)[3])["error"]
    message = error if isinstance(error, str) else error["message"]
    assert f"== Answer ==\n! {message}" in answer(name)


def test_a_stream_that_breaks_off_is_shown_as_far_as_it_goes() -> None:
    _, asked, kind, body = exchange("generate_stream")
    lines = body.splitlines(keepends=True)
    shown = render_answer(b"".join(lines[:3]), kind, asked, None)
    assert " in far near" in shown
    assert shown.endswith("! the stream ended without its terminal event")
    shown = render_answer(b"".join(lines[:3]) + lines[3][:20], kind, asked, None)
    assert " in far near" in shown
    assert shown.endswith("! the stream ended without its terminal event, in the middle of an event")


@pytest.mark.parametrize("name", ["generate_stream", "v1_messages_stream"])
def test_of_a_shortened_stream_both_ends_and_the_final_figures_are_shown(name: str) -> None:
    _, asked, kind, body = exchange(name)
    head, tail = body[: len(body) // 3], body[len(body) // 2 + 7 :]
    stored = truncated(head, tail, len(body) - len(head) - len(tail))
    shown = render_answer(stored, kind, asked, None)
    assert f"\n[... {len(body) - len(head) - len(tail)} bytes are not kept ...]\n" in shown
    assert "answer  " in shown
    assert "! " not in shown


def test_of_a_shortened_pull_the_steps_of_both_ends_are_shown() -> None:
    head = b'{"status":"pulling abc","total":4000000,"completed":1000000}\n{"status":"pulling abc","tot'
    tail = b'"completed":3000000}\n{"status":"pulling abc","total":4000000,"completed":4000000}\n{"status":"success"}\n'
    assert (
        render_answer(truncated(head, tail, 4321), "application/x-ndjson", b"", None)
        == """== Answer ==
pulling abc: 1.0 of 4.0 MB
[... 4321 bytes are not kept ...]
pulling abc: 4.0 of 4.0 MB
success"""
    )


def test_an_error_before_the_gap_of_a_shortened_stream_is_shown() -> None:
    head = b'{"response":"hi"}\n{"error":"boom"}\n'
    shown = render_answer(truncated(head, b'\n{"done":true}\n', 99), "application/x-ndjson", b"", None)
    assert "  hi\n[... 99 bytes are not kept ...]" in shown
    assert shown.endswith("\n! boom")


def test_the_end_of_a_shortened_stream_begins_at_an_event_within_a_character() -> None:
    event = 'data: {"choices":[{"delta":{"content":"größer"}}]}\r\n\r\n'.encode()
    tail = event[event.index("ö".encode()) + 1 :] + event + b"data: [DONE]\r\n\r\n"
    shown = render_answer(truncated(event, tail, 99), "text/event-stream", b"", None)
    assert shown == ("== Answer ==\nassistant:\n  größer\n[... 99 bytes are not kept ...]\nassistant:\n  größer")


def test_of_a_shortened_answer_that_is_no_stream_both_ends_are_shown_as_they_are() -> None:
    stored = truncated(b'{"response":"begi', b'nd","done":true}', 99)
    assert render_answer(stored, "application/json", b"", None) == (
        '== Answer ==\n{"response":"begi\n[... 99 bytes are not kept ...]\nnd","done":true}'
    )


def test_of_shortened_embeddings_no_numbers_are_shown() -> None:
    stored = truncated(b'{"embeddings":[[0.1,', b"0.2]]}", 99)
    assert render_answer(stored, "application/json", b"", None) == (
        "== Answer ==\nvectors\n[... 99 bytes are not kept ...]"
    )


def test_both_ends_of_a_shortened_request_are_shown() -> None:
    asked = truncated(b'{"prompt":"' + b"x " * 15_000, b"y " * 15_000 + b'the end"}', 99)
    shown = render_request(asked, None)
    assert shown.startswith('== Body (its middle is not stored) ==\n{"prompt":"x x ')
    assert " more characters)\n[... 99 bytes are not kept ...]\n(10,009 earlier characters) …" in shown
    assert shown.endswith('y y the end"}')
    assert "== Conversation ==\n(not stored completely: see the request)" in render_answer(b"{}", "", asked, None)


@given(st.binary(max_size=60), st.binary(max_size=60), st.integers(1, 10**12))
def test_a_shortened_body_is_taken_apart_again(head: bytes, tail: bytes, left_out: int) -> None:
    assert split_gap(truncated(head, tail, left_out)) == (head, left_out, tail)
    assert split_gap(truncated(head, tail, 0)) is None


def test_in_modes_that_weigh_no_request_the_candidates_are_shown_with_their_scores() -> None:
    candidates = [
        {"agent": "gpu-1", "score": 30.5, "in_flight": 0},
        {"agent": "gpu-2", "score": None, "in_flight": 3},
    ]
    record = {"agent": "gpu-1", "mode": "metrics", "why": "score 30.5", "options": [], "candidates": candidates}
    assert (
        request({"model": "m"}, record).partition("\n\n== Request ==")[0]
        == """== Decision ==
→ gpu-1 · metrics · score 30.5

agent  score  in flight
gpu-1  30.5   0
gpu-2  -      3"""
    )


def test_a_conversation_is_shown_by_turns() -> None:
    shown = request(
        {
            "model": "llava",
            "stream": True,
            "options": {"num_ctx": 4096},
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}, {"name": "time"}],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is this?\nAnd that?", "images": ["A" * 4000]},
                {"role": "assistant", "thinking": "hm", "content": "A cat."},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Bonn"}}}],
                },
                {"role": "tool", "tool_name": "weather", "content": "11 degrees"},
            ],
        }
    )
    assert (
        shown
        == """== Request ==
model    llava
stream   true
options  {"num_ctx":4096}
tools    weather, time

== Conversation ==
system:
  Be brief.
user:
  What is this?
  And that?
  [image, 3 kB]
assistant thinks:
  hm
assistant:
  A cat.
assistant calls:
  weather {"city":"Bonn"}
tool (weather):
  11 degrees"""
    )


def test_the_parts_of_openais_and_anthropics_messages_are_shown() -> None:
    image = "data:image/png;base64," + "A" * 40_000
    shown = request(
        {
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Look"},
                        {"type": "image_url", "image_url": {"url": image}},
                        {"type": "image_url", "image_url": "https://a.test/cat.png"},
                        {"type": "image", "source": {"type": "base64", "data": "A" * 80_000}},
                        {"type": "tool_result", "content": [{"type": "text", "text": "11 degrees"}]},
                    ],
                },
                {"role": "assistant", "content": [{"type": "tool_use", "name": "weather", "input": {"city": "Bonn"}}]},
            ],
        }
    )
    for text in (
        "Be brief.",
        "Look",
        "[image, 30 kB]",
        "[image at https://a.test/cat.png]",
        "[image, 60 kB]",
        "(result) 11 degrees",
        'calls weather {"city":"Bonn"}',
    ):
        assert text in shown
    assert "AAAA" not in shown


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "A" * 80_000, "format": "wav"}},
        {"type": "document", "source": {"type": "base64", "data": "A" * 80_000}},
        {"type": "redacted_thinking", "data": "A" * 80_000},
        {"type": "tool_result", "content": [{"type": "image", "source": {"data": "A" * 80_000}}]},
    ],
)
def test_of_files_in_a_message_the_size_is_shown(part: dict[str, Any]) -> None:
    shown = request({"messages": [{"role": "user", "content": [part]}]})
    assert "60 kB" in shown
    assert "AAAA" not in shown


def test_of_images_in_a_shortened_request_the_size_is_shown() -> None:
    asked = truncated(b'{"images":["' + b"A" * 80_000, b"A" * 40_000 + b'"]}', 99)
    assert (
        render_request(asked, None)
        == """== Body (its middle is not stored) ==
{"images":["[60 kB of base64]
[... 99 bytes are not kept ...]
[30 kB of base64]"]}"""
    )


def test_an_answer_longer_than_is_kept_ends_with_an_ellipsis() -> None:
    said = json.dumps({"response": "word " * 300_000, "done": True}).encode()
    assert render_answer(said, "application/json", b"", None).endswith("word w…")


def test_the_items_of_a_response_are_shown() -> None:
    shown = request(
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
                {"type": "function_call", "name": "weather", "arguments": '{"city":"Bonn"}'},
                {"type": "function_call_output", "output": "11 degrees"},
            ],
        }
    )
    said = shown.partition("== Conversation ==\n")[2]
    assert said == (
        'system:\n  Be brief.\nuser:\n  Weather?\nassistant calls:\n  weather {"city":"Bonn"}\ntool:\n  11 degrees'
    )


def test_with_an_answer_only_the_last_turn_is_shown() -> None:
    asked = json.dumps({"messages": [{"role": r, "content": c} for r, c in zip("sua" * 2, "abcdef", strict=True)]})
    asked = asked.replace('"u"', '"user"')
    shown = render_answer(b"{}", "application/json", asked.encode(), None)
    assert "(4 earlier turns: see the request)\nuser:\n  e\n" in shown
    assert "  a" not in shown


def test_the_steps_of_a_pull_are_shown_each_with_its_last_line() -> None:
    lines = [
        {"status": "pulling manifest"},
        *({"status": "pulling abc", "total": 4_000_000, "completed": n} for n in (1_000_000, 4_000_000)),
        {"status": "success"},
    ]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    shown = render_answer(body, "application/x-ndjson", b'{"model":"m"}', None)
    assert "pulling manifest\npulling abc: 4.0 of 4.0 MB\nsuccess" in shown


def test_a_long_text_is_cut_and_says_so() -> None:
    assert "… (30,000 more characters)" in request({"prompt": "x" * 50_000})


def test_long_lines_are_broken_between_words_where_there_are_any() -> None:
    said = request({"prompt": "word " * 30 + "\n" + "x" * 100 + "\n  indented"}).partition("user:\n")[2]
    assert said.split("\n") == [
        "  " + " ".join(["word"] * 17),
        "  " + " ".join(["word"] * 13),
        "  " + "x" * 88,
        "  " + "x" * 12,
        "    indented",
    ]


def test_a_body_that_is_no_json_is_shown_as_text() -> None:
    assert render_request(b"model=x", None) == "== Body (not a JSON object) ==\nmodel=x"
    assert "<html>" in render_answer(b"<html>", "text/html", b"", None)


KINDS = st.sampled_from(["application/json", "application/x-ndjson", "text/event-stream", "", "text/html"])
# fmt: off
KEYS = st.sampled_from([
    "messages", "role", "content", "type", "text", "tool_calls", "function", "name", "arguments", "input",
    "images", "image_url", "source", "data", "prompt", "system", "tools", "options", "embeddings", "embedding",
    "status", "completed", "total", "response", "message", "done", "error", "choices", "delta", "agent", "url",
    "why", "failures", "options", "attempts", "waited_ms", "reason", "cost", "free", "first_byte_ms", "total_ms",
])
# fmt: on
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | KEYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=30,
)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(KEYS, JSON, max_size=6), st.dictionaries(KEYS, JSON, max_size=6), KINDS, JSON)
def test_json_of_any_shape_is_survived(asked: Any, said: Any, kind: str, record: Any) -> None:
    body = json.dumps(said).encode()
    for framed in (body, body + b"\n" + body, b"data: " + body + b"\n\n"):
        assert isinstance(render_answer(framed, kind, json.dumps(asked).encode(), record), str)
    assert isinstance(render_request(json.dumps(asked).encode(), record), str)


@settings(deadline=None, max_examples=100)
@given(JSON)
def test_parts_and_records_with_values_of_any_type_are_survived(value: Any) -> None:
    part = {"type": value, "text": value, "source": value, "image_url": value, "content": value, "function": value}
    request({"messages": [{"role": value, "content": [part], "tool_calls": [part]}], "input": [part], "tools": [part]})
    option = {"agent": value, "cost": value, "wait": value, "free": value, "observations": value}
    request(
        {},
        {"options": [option], "failures": [{"agent": value, "reason": value}]} | dict.fromkeys(("why", "url"), value),
    )
    request(
        {}, {"candidates": [{"agent": value, "score": value, "in_flight": value}], "attempts": value, "agent": value}
    )


def test_a_record_with_a_figure_of_thousands_of_digits_is_survived() -> None:
    assert "→ no agent" in request({}, {"agent": 10**5000, "attempts": 10**5000})


@settings(deadline=None, max_examples=100)
@given(st.binary(), st.binary(), KINDS)
def test_any_bytes_are_survived(asked: bytes, said: bytes, kind: str) -> None:
    render_request(asked, None)
    render_answer(said, kind, asked, {})


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(["chat_tools_stream", "v1_messages_stream", "v1_responses_stream", "embed_multi"]),
    st.integers(0, 5000),
    st.integers(0, 40),
    st.text(string.punctuation + string.digits, max_size=8),
)
def test_a_damaged_answer_is_survived(name: str, at: int, cut: int, put: str) -> None:
    _, asked, kind, body = exchange(name)
    render_answer(body[:at] + put.encode() + body[at + cut :], kind.lower(), asked[: at % 100], RECORD)


@pytest.mark.parametrize("nest", [b"[" * 200_000, b'{"messages":' * 100_000, b'{"a":[' * 100_000])
def test_deep_nesting_is_survived(nest: bytes) -> None:
    render_request(nest, None)
    render_request(b'{"messages":' + nest, None)
    render_answer(nest, "application/json", nest, None)


def test_of_a_stream_of_very_many_lines_both_ends_are_read() -> None:
    final = b'{"done":true,"eval_count":7}\n'
    shown = render_answer(b"{}\n" * 300_000 + final, "application/x-ndjson", b"", None)
    assert "bytes are not kept" in shown
    assert "answer  7 tokens" in shown
