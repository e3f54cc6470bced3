from __future__ import annotations

import pytest

from ollama_balancer.ollama.answer_watcher import (
    MAX_DECOMPRESSED,
    NO_TERMINAL,
    AnswerWatcher,
    CompressedAnswerWatcher,
    watcher_of,
)
from tests.examples import amount
from tests.packing import BITS, ENCODINGS, Packer, header_of, packed

NDJSON, SSE, JSON = "application/x-ndjson", "text/event-stream", "application/json; charset=utf-8"
TOKEN = b'{"model":"m","response":" a","done":false}\n'
FINAL = b'{"model":"m","response":"","done":true,"eval_count":40,"eval_duration":2000000000}\n'


def watched(encoding: str, *pieces: bytes, content_type: str = NDJSON, ends: bool = True) -> AnswerWatcher:
    watcher, packer = watcher_of(content_type, header_of(encoding), 1_000_000), Packer(encoding)
    for piece in pieces:
        watcher.feed(packer.add(piece))
    if ends:
        watcher.feed(packer.end())
    return watcher


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_compressed_stream_is_judged_like_another(encoding: str) -> None:
    watcher = watched(encoding, TOKEN, TOKEN, FINAL)
    assert (watcher.streamed, watcher.terminal_seen, watcher.compressed) == (True, True, True)
    verdict = watcher.verdict()
    assert (verdict.whole, verdict.tokens_per_second) == (True, 20.0)
    assert watcher.captured.joined() == TOKEN + TOKEN + FINAL
    cut = watched(encoding, TOKEN, TOKEN)
    assert (cut.verdict().whole, cut.verdict().error) == (False, NO_TERMINAL)
    told = watched(encoding, TOKEN, b'{"error":"the runner died"}\n')
    assert told.verdict().error == "the runner died"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_compressed_answer_that_is_no_stream_is_read(encoding: str) -> None:
    watcher = watcher_of(JSON, header_of(encoding), 1_000_000)
    watcher.feed(packed(encoding, FINAL))
    assert watcher.verdict().output_tokens == 40
    failed = watcher_of(JSON, header_of(encoding), 1_000_000)
    failed.feed(packed(encoding, b'{"error":"the runner died"}'))
    assert failed.verdict().error == "the runner died"


@pytest.mark.parametrize("encoding", ["compress", "gzip, br", "none"])
def test_of_an_encoding_that_is_not_known_nothing_is_said(encoding: str) -> None:
    watcher = watcher_of(SSE, encoding, 1_000_000)
    watcher.feed(b"whatever")
    assert watcher.streamed
    assert watcher.verdict().whole
    assert not watcher.compressed
    assert watcher.captured.joined() == b"whatever"
    assert watcher.encode_trailer(b"words") is None


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_stream_that_unpacks_into_too_much_is_not_read_and_not_judged(encoding: str) -> None:
    watcher, packer = watcher_of(NDJSON, header_of(encoding), 1_000_000), Packer(encoding)
    watcher.feed(packer.add(TOKEN))
    watcher.feed(packer.add(b"x" * (amount(64, 8) * MAX_DECOMPRESSED)))
    watcher.feed(packer.add(TOKEN))
    assert watcher.captured.joined() == TOKEN
    assert watcher.verdict().whole
    assert watcher.encode_trailer(b"words") is None


def test_what_is_not_compressed_as_is_said_is_not_judged() -> None:
    watcher = watcher_of(NDJSON, "gzip", 1_000_000)
    watcher.feed(TOKEN)
    assert watcher.verdict().whole


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_an_answer_that_is_not_compressed_is_read_as_it_is(encoding: str) -> None:
    watcher = watcher_of(NDJSON, encoding, 1_000_000)
    watcher.feed(TOKEN)
    assert not isinstance(watcher, CompressedAnswerWatcher)
    assert watcher.encode_trailer(b"words") == b"words"
    assert watcher.verdict().error == NO_TERMINAL


@pytest.mark.parametrize("encoding", BITS)
def test_what_is_put_behind_a_compressed_stream_is_compressed_and_kept_as_it_reads(encoding: str) -> None:
    watcher = watched(encoding, TOKEN, ends=False)
    ending = watcher.encode_trailer(b'{"error":"x"}\n')
    assert ending is not None
    assert b"error" not in ending[:2]
    watcher.feed_trailer(b'{"error":"x"}\n')
    assert watcher.captured.joined() == TOKEN + b'{"error":"x"}\n'
