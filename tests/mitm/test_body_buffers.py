from __future__ import annotations

from typing import Any

import h11
import pytest
from h11._readers import ChunkedReader
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_balancer.mitm.body_buffers import MAX_AT_ONCE, BodyBuffer, CoalescingReader
from ollama_balancer.mitm.head_limits import LimitedBuffer


def read(reader: ChunkedReader, data: bytes, piece: int) -> tuple[bytes, str, int]:
    """The payload, how it ended, and in how many pieces it came."""
    buffer = LimitedBuffer()
    payload, pieces = b"", 0
    for at in range(0, len(data), piece):
        buffer.__iadd__(data[at : at + piece])
        while True:
            try:
                event: Any = reader(buffer)
            except h11.RemoteProtocolError:
                return payload, "refused", pieces
            except h11.LocalProtocolError:
                return payload, "malformed", pieces
            if isinstance(event, h11.EndOfMessage):
                return payload, f"ended, {len(buffer) + len(data[at + piece :])} left", pieces
            if event is None:
                break
            payload += bytes(event.data)
            pieces += 1
    return payload, "unfinished", pieces


def chunked(*payloads: bytes, end: bytes = b"0\r\n\r\n", written: bytes = b"%x") -> bytes:
    return b"".join((written % len(payload)) + b"\r\n%s\r\n" % payload for payload in payloads) + end


ANY_SIZES = st.lists(st.binary(min_size=1, max_size=40), max_size=30)
ONE_SIZE = st.integers(1, 15).flatmap(
    lambda size: st.lists(st.binary(min_size=size, max_size=size), min_size=6, max_size=30)
)
CHUNKS = st.one_of(ANY_SIZES, st.tuples(ONE_SIZE, ANY_SIZES).map(lambda both: [*both[0], *both[1]]))
ENDS = st.sampled_from(
    [
        b"0\r\n\r\n",
        b"0\r\n\r\nGET / HTTP/1.1\r\n",
        b"",
        b"nonsense\r\n",
        b"5\r\nab",
        b"2\r\nabX\r\n",
        b"3;x=y\r\nabc\r\n0\r\n\r\n",
    ]
)


@given(CHUNKS, ENDS, st.integers(1, 50), st.sampled_from([b"%x", b"%X", b"0%X"]))
@settings(max_examples=500, deadline=None)
def test_the_same_comes_out_as_chunk_by_chunk(payloads: list[bytes], end: bytes, piece: int, written: bytes) -> None:
    data = chunked(*payloads, end=end, written=written)
    ours, theirs = read(CoalescingReader(), data, piece), read(ChunkedReader(), data, piece)
    assert ours[:2] == theirs[:2]
    assert ours[2] <= theirs[2]


def test_small_chunks_are_work_of_their_bytes_and_not_of_their_number() -> None:
    payload, ended, pieces = read(CoalescingReader(), chunked(*[b"x"] * 100_000), 65_536)
    assert (payload, ended) == (b"x" * 100_000, "ended, 0 left")
    assert pieces <= 3 * (600_000 // 65_536 + 1)


def test_what_is_put_together_has_a_bound() -> None:
    buffer = LimitedBuffer()
    buffer.__iadd__(chunked(*[b"x" * 60_000] * 20))
    reader = CoalescingReader()
    sizes = []
    while not isinstance(event := reader(buffer), h11.EndOfMessage):
        assert event is not None
        sizes.append(len(event.data))
    assert sum(sizes) == 1_200_000
    assert max(sizes) <= MAX_AT_ONCE + 60_000


def test_trailers_are_dropped_and_a_line_without_an_end_is_refused() -> None:
    assert read(CoalescingReader(), chunked(b"ab", end=b"0\r\nX-Trailer: 1\r\n\r\n"), 7)[:2] == (b"ab", "ended, 0 left")
    assert read(CoalescingReader(), chunked(b"ab", end=b"1;" + b"x" * 10_000), 1000)[:2] == (b"ab", "refused")


@pytest.mark.parametrize("sizes", [[], [1], [0, 5, 0], [100] * 1000, [3_000_000, 1]])
def test_a_body_is_what_has_come(sizes: list[int]) -> None:
    buffer, expected = BodyBuffer(), b""
    assert not buffer
    for number, size in enumerate(sizes):
        piece = bytes([number % 256]) * size
        buffer += piece
        expected += piece
        assert len(buffer) == len(expected)
    assert bytes(buffer) == expected
    assert bool(buffer) == bool(expected)
    buffer.clear()
    assert (len(buffer), bytes(buffer)) == (0, b"")
    buffer += b"again"
    assert bytes(buffer) == b"again"
