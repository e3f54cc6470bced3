"""What it costs to watch a stream that passes, in each API's shape: `pytest benches/test_watching.py --benchmark-only`.

A round is 1,000 events, so that milliseconds a round are microseconds an event. `json` only parses the events' JSON.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator

import pytest
from pydantic_core import from_json
from pytest_benchmark.fixture import BenchmarkFixture

from ollama_balancer.mitm.fastpath.relay import BATCH
from ollama_balancer.ollama.answer_watcher import AnswerWatcher

NDJSON, SSE = "application/x-ndjson", "text/event-stream"
EVENTS = 1_000
WORDS = [" the", " quick", " brown", " fox", " jumps", " over", " a", " lazy", " dog", "."]

# As Ollama 0.33 sends them; `@` is where the word comes and `#` a number that changes.
SHAPES = {
    "generate": (NDJSON, '{"model":"tiny-a","created_at":"2026-11-23T18:58:16.#Z","response":"@","done":false}\n'),
    "chat": (
        NDJSON,
        '{"model":"tiny-a","created_at":"2026-11-23T18:58:18.#Z","message":{"role":"assistant","content":"@"},'
        '"done":false}\n',
    ),
    "thinking": (
        NDJSON,
        '{"model":"tiny-a","created_at":"2026-11-23T18:58:18.#Z","message":{"role":"assistant","content":"",'
        '"thinking":"@"},"done":false}\n',
    ),
    "v1_chat": (
        SSE,
        'data: {"id":"chatcmpl-523","object":"chat.completion.chunk","created":1795460302,"model":"tiny-a",'
        '"system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"content":"@"},"finish_reason":null}]}\n\n',
    ),
    "v1_completions": (
        SSE,
        'data: {"id":"cmpl-385","object":"text_completion","created":1795460303,"choices":[{"text":"@","index":0,'
        '"finish_reason":null}],"model":"tiny-a","system_fingerprint":"fp_ollama"}\n\n',
    ),
    "v1_messages": (
        SSE,
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
        '"text":"@"}}\n\n',
    ),
    "v1_responses": (
        SSE,
        'event: response.output_text.delta\ndata: {"content_index":0,"delta":"@","item_id":"msg_411295","logprobs":[],'
        '"output_index":0,"sequence_number":#,"type":"response.output_text.delta"}\n\n',
    ),
}

by_shape = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture(autouse=True)
def _no_other_garbage() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def stream(shape: str) -> tuple[str, list[bytes], str]:
    """The content type, the events, and the text that they carry."""
    rng = random.Random(shape)
    content_type, template = SHAPES[shape]
    words = rng.choices(WORDS, k=EVENTS)
    numbers = (str(rng.randrange(10**8, 10**9)) for _ in words)
    events = [
        template.replace("@", word).replace("#", number).encode() for word, number in zip(words, numbers, strict=True)
    ]
    return content_type, events, "".join(words)


def measure(benchmark: BenchmarkFixture, group: str, call: Callable[[], object]) -> None:
    benchmark.group = group
    benchmark.pedantic(call, rounds=300, warmup_rounds=3)  # type: ignore[no-untyped-call]


def measure_watching(
    benchmark: BenchmarkFixture, group: str, content_type: str, chunks: list[bytes], text: str, *, skim: bool = False
) -> None:
    def watch() -> AnswerWatcher:
        watcher = AnswerWatcher(content_type, skim=skim)
        feed = watcher.feed
        for chunk in chunks:
            feed(chunk)
        return watcher

    answer = watch().answer
    assert answer.events == EVENTS
    assert skim or text in (answer.text, answer.thinking)
    measure(benchmark, group, watch)


@by_shape
def test_an_event_a_chunk(benchmark: BenchmarkFixture, shape: str) -> None:
    measure_watching(benchmark, "an event a chunk", *stream(shape))


@by_shape
def test_eight_events_a_chunk(benchmark: BenchmarkFixture, shape: str) -> None:
    content_type, events, text = stream(shape)
    chunks = [b"".join(events[at : at + 8]) for at in range(0, EVENTS, 8)]
    measure_watching(benchmark, "eight events a chunk", content_type, chunks, text)


@by_shape
def test_events_that_the_relay_hands_over(benchmark: BenchmarkFixture, shape: str) -> None:
    content_type, events, text = stream(shape)
    chunks = [b"".join(events[at : at + BATCH]) for at in range(0, EVENTS, BATCH)]
    measure_watching(benchmark, f"{BATCH} events at once, skimmed", content_type, chunks, text, skim=True)


@by_shape
def test_an_event_in_two_chunks(benchmark: BenchmarkFixture, shape: str) -> None:
    content_type, events, text = stream(shape)
    chunks = [half for event in events for half in (event[:60], event[60:])]
    measure_watching(benchmark, "an event in two chunks", content_type, chunks, text)


@by_shape
def test_json(benchmark: BenchmarkFixture, shape: str) -> None:
    _, events, _ = stream(shape)
    objects = [event[event.index(b"{") :] for event in events]

    def parse() -> None:
        for data in objects:
            from_json(data)

    measure(benchmark, "json", parse)
