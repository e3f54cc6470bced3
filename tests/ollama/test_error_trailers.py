"""Wherever a stream breaks off, its client's own decoder reads whole events and then an error.

The decoders are those of the client packages: `anthropic` and `openai` for SSE, lines of JSON as `ollama` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ollama_balancer.ollama.answer_watcher import AnswerWatcher
from ollama_balancer.ollama.error_trailers import MAX_COMPLETED, error_trailer
from ollama_balancer.ollama.events import MAX_EVENT_BYTES, PartialEvent
from ollama_balancer.ollama.routes import Dialect

pytestmark = pytest.mark.e2e

RECORDINGS = Path(__file__).parent / "recordings"
NDJSON, SSE = "application/x-ndjson", "text/event-stream"
MESSAGE = 'agent "a" failed in the middle: data: {\n'

STREAMS = {
    "generate_stream.ndjson": Dialect.OLLAMA,
    "chat_tools_stream.ndjson": Dialect.OLLAMA,
    "v1_chat_tools_stream.sse": Dialect.OPENAI,
    "v1_completions_stream.sse": Dialect.OPENAI,
    "v1_responses_stream.sse": Dialect.RESPONSES,
    "v1_messages_tools_stream.sse": Dialect.ANTHROPIC,
}


def body_of(name: str) -> bytes:
    return (RECORDINGS / name).read_bytes()


def content_type(dialect: Dialect) -> str:
    return NDJSON if dialect is Dialect.OLLAMA else SSE


def broken_off(dialect: Dialect, sent: bytes) -> bytes:
    watcher = AnswerWatcher(content_type(dialect))
    watcher.feed(sent)
    return sent + error_trailer(dialect, watcher.content_type, watcher.partial_event, MESSAGE)


def read_by_client(dialect: Dialect, body: bytes) -> Iterator[tuple[str | None, Any]]:
    """Each event's name and JSON. Raises where the client would call it malformed."""
    assert body.endswith(b"\n")
    if dialect is Dialect.OLLAMA:
        for line in body[:-1].split(b"\n"):
            yield None, json.loads(line)
        return
    assert body.endswith(b"\n\n")
    decoder: Any
    import anthropic._streaming  # here, as each takes a second
    import openai._streaming

    decoder = anthropic._streaming.SSEDecoder() if dialect is Dialect.ANTHROPIC else openai._streaming.SSEDecoder()
    for event in decoder.iter_bytes(iter([body])):
        yield event.event, event.data if event.data == "[DONE]" else event.json()


def is_error(dialect: Dialect, name: str | None, value: Any) -> bool:
    """Whether the client raises its own error with the message."""
    match dialect:
        case Dialect.OLLAMA:
            return bool(value.get("error") == MESSAGE)
        case Dialect.ANTHROPIC:
            return name == "error" and value["error"]["message"] == MESSAGE
        case _:
            return bool((value.get("error") or {}).get("message") == MESSAGE)


def check(dialect: Dialect, sent: bytes) -> None:
    *before, (name, value) = read_by_client(dialect, broken_off(dialect, sent))
    assert is_error(dialect, name, value)
    assert not any(isinstance(other, dict) and is_error(dialect, name, other) for name, other in before)


@pytest.mark.parametrize("name", STREAMS)
def test_wherever_a_recorded_stream_is_cut_its_client_reads_an_error(name: str) -> None:
    dialect, body = STREAMS[name], body_of(name)
    whole = body.index(b"[DONE]") - len("data: ") if b"[DONE]" in body else len(body)
    for at in range(whole):
        check(dialect, body[:at])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=4), st.booleans(), st.sampled_from(Dialect), st.data())
@example({"a": 'b"\\\U0001f600é'}, True, Dialect.OPENAI, None)
@example({"a": 'b"\\\U0001f600é\ufffe'}, False, Dialect.OLLAMA, None)
@example({"a": [True, False, None, -1.5e-7, {}], "é": {"b": []}}, False, Dialect.ANTHROPIC, None)
def test_any_object_may_be_cut_anywhere(
    value: dict[str, Any], escaped: bool, dialect: Dialect, data: st.DataObject | None
) -> None:
    text = json.dumps(value, ensure_ascii=escaped).encode()
    sent = text if dialect is Dialect.OLLAMA else b"data: " + text
    for at in range(len(sent)) if data is None else [data.draw(st.integers(0, len(sent)))]:
        check(dialect, sent[:at])


@pytest.mark.parametrize("dialect", [Dialect.OPENAI, Dialect.RESPONSES, Dialect.ANTHROPIC])
@pytest.mark.parametrize(
    "sent",
    [
        b"data: {}\n",
        b"data: {}\n\n\n",
        b"data: {\n",
        b'data: {"a":\nda',
        b'data: {"a":\nevent: x',
        b"event: content_block_delta\n",
        b"event: content_block_delta\ndata:",
        b": a comment",
        b"data: {}\r\n\r\ndata: {",
    ],
)
def test_an_event_of_several_lines_may_be_cut(dialect: Dialect, sent: bytes) -> None:
    check(dialect, sent)


def test_an_event_that_is_too_long_or_no_object_is_left_as_it_is() -> None:
    event = json.dumps({"error": "gone"}, separators=(",", ":")).encode() + b"\n"
    for cut in (b"[1, 2", b"1", b"x{", b'{"a" 1', b'{"a":"' + b"x" * MAX_COMPLETED, b'{"a":' + b"[" * 60_000):
        assert error_trailer(Dialect.OLLAMA, NDJSON, PartialEvent(cut, cut), "gone") == b"\n" + event


def test_an_event_beyond_the_parsers_limit_is_left_as_it_is() -> None:
    sent = b'{"a":"' + b"x" * MAX_EVENT_BYTES
    assert broken_off(Dialect.OLLAMA, sent).startswith(sent + b'\n{"error":')
