"""Reads bodies of requests: chunks, JSON, forms."""

from __future__ import annotations

import json
from typing import Any

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from hypothesis import strategies as st

from ollama_balancer.gateway.body_reader import Reading, RefusedBodyError, read_body
from ollama_balancer.mitm.body_buffers import CoalescingReader
from ollama_balancer.mitm.fastpath.relay import LARGEST_CHUNK, ChunkSplitter
from ollama_balancer.mitm.head_limits import MAX_CHUNK_LINE, LimitedBuffer
from ollama_balancer.ollama import json_scanning
from ollama_balancer.ollama.json_scanning import Scanner, UnreadableError, is_json
from ollama_balancer.ollama.requests import read_request
from ollama_balancer.ollama.routes import ROUTES
from tests.fuzz.corpus import cut
from tests.packing import packed

BODY_TOKENS = (
    b"\r\n", b"\n", b"\r", b"0\r\n\r\n", b"0\r\n", b"00000001\r\na\r\n", b"1\r\na\r\n", b"A\r\n0123456789\r\n",
    b"1;x\r\na\r\n", b"1 \r\na\r\n", b"-1\r\n", b"0x1\r\na\r\n", b"+1\r\na\r\n", b"ffffffffffffffffffff\r\n",
    b"10001\r\n", b"0\r\nX-T: 1\r\n\r\n", b"1_0\r\n", b"1\r\r\na\r\n", b"\x00", b"\xb2\r\n", b"f" * 5000,
)  # fmt: skip


def chunked_body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def _plainly_split(data: bytes) -> tuple[bytes, list[bytes]]:
    """The whole plain chunks that the bytes begin with, and their payloads."""
    at, payloads = 0, []
    while True:
        line, found, _ = data[at:].partition(b"\r\n")
        if not found or not 1 <= len(line) <= 8 or line.strip(b"0123456789abcdefABCDEF"):
            break
        size = int(line, 16)
        start = at + len(line) + 2
        if not 0 < size <= LARGEST_CHUNK or data[start + size : start + size + 2] != b"\r\n":
            break
        payloads.append(data[start : start + size])
        at = start + size + 2
    return data[:at], payloads


def relayed_chunks(data: bytes, places: list[float]) -> None:
    splitter = ChunkSplitter()
    forwarded, payloads, left = b"", [], cut(data, places)
    while left and not splitter.ended:
        piece = left.pop(0)
        alone = splitter.single_chunk(piece)
        some, more = (piece, [alone]) if alone else splitter.feed(piece)
        forwarded += some
        payloads += more
    assert (forwarded, payloads) == _plainly_split(data)
    assert forwarded + splitter.remainder + b"".join(left) == data
    assert splitter.ended or len(splitter.remainder) <= LARGEST_CHUNK + len(b"10000\r\n\r\n")


def read_chunks(reader: ChunkedReader, buffer: ReceiveBuffer, pieces: list[bytes]) -> tuple[bytes, str]:
    payload = b""
    for at, piece in enumerate(pieces):
        buffer += piece
        while True:
            try:
                event: Any = reader(buffer)
            except h11.ProtocolError:
                return payload, "refused"
            if isinstance(event, h11.EndOfMessage):
                return payload, f"{len(buffer) + sum(map(len, pieces[at + 1 :]))} left"
            if event is None:
                break
            payload += bytes(event.data)
    return payload, "unfinished"


def chunked_bodies(data: bytes, places: list[float]) -> None:
    pieces = cut(data, places)
    ours = read_chunks(CoalescingReader(), LimitedBuffer(), pieces)
    theirs = read_chunks(ChunkedReader(), ReceiveBuffer(), pieces)
    if ours[1] == "refused" and any(len(line) > MAX_CHUNK_LINE // 4 for line in data.split(b"\n")):
        assert theirs[0].startswith(ours[0])  # a line that is too long, which h11 waits for
    else:
        assert ours == theirs


JSON_TOKENS = (
    b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b'\\"', b"\\\\", b"\\u0000", b"\\ud800", b"\\u00e9", b"\xff",
    b"\xc3\xa9", b"\x00", b"null", b"true", b"false", b"NaN", b"-Infinity", b"1e400", b"-0", b"01", b"1.", b"1" * 400,
    b" \t\r\n", b'"model":"other",', b'"MODEL":"other",', b'"mo\\u0064el":"x",', b'"\xe2\x84\xaa":1,',
    b'"stream":false,', b'"keep_alive":0,', b"[[" * 40, b'{"a":' * 40, b'"', b"x" * 700, b'"', b'"', b"\\" * 41,
    b'"messages":[],',
)  # fmt: skip


def _refuse(name: str) -> None:
    raise ValueError(name)


def _naive_members(body: bytes) -> dict[str, Any] | None:
    """The members of the object that the body begins with, by folded key, as Python's own reader has them."""

    def folded(pairs: list[tuple[str, Any]]) -> Any:
        return pairs

    decoder = json.JSONDecoder(object_pairs_hook=folded, parse_constant=_refuse)
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        value, _ = decoder.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    if not text.startswith("{"):
        return None
    return {json_scanning._folded(json_scanning.well_formed(key).encode()): member for key, member in value}


def scanned_json(body: bytes) -> None:
    expected = _naive_members(body)
    try:
        found = {key: body[start:end] for key, start, end in Scanner(body).members()}
    except (UnreadableError, IndexError):
        found = None
    if expected is not None:
        assert found is not None
        assert is_json(body)
        assert found.keys() == expected.keys()
        decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: pairs)
        for key, text in found.items():
            value = decoder.decode(text.decode("utf-8", "replace"))
            assert value == expected[key]
    for route in ROUTES:
        asked = read_request(route, route.path.replace("{}", "x"), body, "")
        assert asked.model is None or len(asked.model) <= json_scanning.MAX_TEXT
        if not route.is_form and expected is not None:
            assert asked.readable


FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n\x00\x01\r\n--b--\r\n'
)
FORM_TYPE = "multipart/form-data; boundary=b"
CONTENT_TYPES = st.sampled_from(
    ["", "application/json", FORM_TYPE, 'multipart/form-data; boundary="b"', "text/plain; x"]
)
REQUEST_ENCODINGS = st.sampled_from(["", "zstd", "gzip", "identity", "br"])


def request_bodies(body: bytes, content_type: str, encoding: str, pack: bool) -> None:
    content = packed("zstd", body) if pack and encoding == "zstd" else body
    naive = _naive_members(body) if not encoding or pack else None
    for route in ROUTES:
        path = route.path.replace("{}", "x")
        reading = read_body(route, path, content, content_type, encoding, lambda name: name)
        assert isinstance(reading, (Reading, RefusedBodyError))
        if isinstance(reading, RefusedBodyError):
            assert reading.status in (400, 413)
            assert 0 < len(reading.message) < 1000
            continue
        assert len(reading.excerpt) < 10_000
        model = (naive or {}).get("model")
        if route.path == "/api/chat" and isinstance(model, str) and model and (encoding in ("", "zstd")):
            assert reading.parsed.model == json_scanning.well_formed(model)
