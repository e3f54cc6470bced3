"""Reads the bodies of answers: events, JSON, compressed ones."""

from __future__ import annotations

import json

from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer

from ollama_balancer.ollama.answer_watcher import AnswerWatcher
from ollama_balancer.ollama.decompression import DecompressionError, decompress, decompressor_for
from tests.fuzz.bodies import chunked_body, read_chunks
from tests.fuzz.corpus import STREAMS, cut, head_of
from tests.ollama.test_events import NDJSON, SSE, parse, plainly_read
from tests.packing import header_of, plainly_unpacked

STREAM_TOKENS = (
    b"\n", b"\r\n", b"\r", b"\n\n", b"\r\r", b"data: ", b"data:", b"data", b"data: [DONE]\n\n", b"event: error\n",
    b": x\n", b"id: 1\n", b'{"error":"x"}\n', b'data: {"error":{"message":"x"}}\n\n', b'"done":true',
    b'"done":false}\n', b"null", b"[]", b'"context":[1,2]', b"\xff", b"\xef\xbb\xbf", b"1e999", b"-1",
    b"18446744073709551616", b'"eval_count":-1', b'"eval_duration":0', b"{" * 30, b"[" * 300,
)  # fmt: skip

STREAMED = [
    (
        SSE if b"event-stream" in head_of(answer) else NDJSON,
        read_chunks(ChunkedReader(), ReceiveBuffer(), [chunked_body(answer)])[0],
    )
    for answer in STREAMS
    if b"event-stream" in head_of(answer) or b"ndjson" in head_of(answer)
]


def streams_of_events(data: bytes, places: list[float]) -> None:
    for content_type in (NDJSON, SSE):
        expected = plainly_read(content_type, data)
        pieces = cut(data, places)
        assert parse(content_type, data) == expected
        assert parse(content_type, *pieces) == expected
        verdicts = set()
        for skim in (False, True):
            watcher = AnswerWatcher(content_type, skim=skim)
            for piece in pieces:
                watcher.feed(piece)
            partial_event = watcher.partial_event
            assert len(partial_event.line) + len(partial_event.data) <= 2 * len(data)
            verdict = watcher.verdict()
            assert b"".join(watcher.captured.ends()) == data
            assert verdict.error is None or len(verdict.error) < 100_000
            verdicts.add(verdict)
        assert len(verdicts) == 1


def whole_answers(data: bytes, places: list[float]) -> None:
    watcher = AnswerWatcher("application/json")
    for piece in cut(data, places):
        watcher.feed(piece)
    verdict = watcher.verdict()
    assert verdict.whole is (verdict.error is None)
    json.dumps(verdict)


MAX_DECOMPRESSED = 65_536


def packed_bodies(encoding: str, data: bytes, places: list[float]) -> None:
    try:
        whole: bytes | None = decompress(data, header_of(encoding), MAX_DECOMPRESSED)
    except DecompressionError:
        whole = None
    assert whole is None or len(whole) <= MAX_DECOMPRESSED
    reader, text = decompressor_for(header_of(encoding)), b""
    assert reader is not None
    try:
        for piece in cut(data, places):
            text += reader.feed(piece, MAX_DECOMPRESSED - len(text))
    except DecompressionError:
        assert whole is None
    else:
        assert (whole is not None) is reader.ended
        assert whole is None or text == whole
    try:
        expected = plainly_unpacked(encoding, data)
    except Exception:  # each library has its own
        return
    if data and len(expected) <= MAX_DECOMPRESSED:
        assert whole == expected
