from __future__ import annotations

from typing import Any

import h11
import pytest

from ollama_balancer.mitm.head_limits import (
    MAX_CHUNK_LINE,
    MAX_FIELDS,
    MAX_HEAD,
    MAX_HOST,
    MAX_LINE,
    MAX_NAME,
    HeadError,
    LimitedBuffer,
    check_authority,
    check_chunk_line,
)

PIECE = 65_535
"""What mitmproxy reads at once."""


def fed(data: bytes, piece: int = PIECE) -> tuple[LimitedBuffer, list[bytes] | None]:
    """Feed it as it would come; the lines of the head, and what is left."""
    buffer = LimitedBuffer()
    for at in range(0, len(data), piece):
        buffer.__iadd__(data[at : at + piece])
        lines = buffer.maybe_extract_lines()
        assert len(buffer) <= MAX_HEAD
        if lines is not None:
            buffer.__iadd__(data[at + piece :])
            return buffer, [bytes(line) for line in lines]
    return buffer, None


def head(*fields: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([line, *fields, b"", b""])


@pytest.mark.parametrize("piece", [1, 7, PIECE])
def test_a_head_within_the_limits_is_read_as_ever(piece: int) -> None:
    fields = [b"x-%d: %s" % (n, b"v" * 50) for n in range(MAX_FIELDS)]
    buffer, lines = fed(head(*fields) + b"\n" * 5000, piece)
    assert lines == [b"GET / HTTP/1.1", *fields]
    assert bytes(buffer) == b"\n" * 5000, "what comes after the head is none of its lines"


def test_one_after_the_other_is_read() -> None:
    large = head(*[b"x: %s" % (b"v" * 1000)] * 900)
    buffer = LimitedBuffer()
    for _ in range(3):
        buffer.__iadd__(large)
        lines = buffer.maybe_extract_lines()
        assert lines is not None and len(lines) == 901


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(head(line=b"GET /" + b"a" * MAX_LINE + b" HTTP/1.1"), 414, id="a long path"),
        pytest.param(b"GET /" + b"a" * 10_000_000, 414, id="a path without an end"),
        pytest.param(head(b"x: " + b"a" * MAX_HEAD), 431, id="a long field"),
        pytest.param(b"GET / HTTP/1.1\r\nx: " + b"a" * 10_000_000, 431, id="a field without an end"),
        pytest.param(head(*[b"x: y"] * (MAX_FIELDS + 1)), 431, id="one field too many"),
        pytest.param(head(*[b"a:"] * (MAX_FIELDS + 1)), 431, id="one short field too many"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"via: 1.1 a\r\n" * 340_000, 431, id="fields without an end"),
        pytest.param(head(b"x: y", *[b" z"] * 100_000), 431, id="many continued lines"),
        pytest.param(head(b"x: y", b" z"), 400, id="one continued line"),
        pytest.param(head(b"x: y", b"\tz"), 400, id="one line continued by a tab"),
        pytest.param(head(b"n" * (MAX_NAME + 1) + b": y"), 431, id="a long name"),
        pytest.param(head(b"n" * MAX_HEAD), 431, id="a name without an end"),
    ],
)
@pytest.mark.parametrize("piece", [1000, PIECE])
def test_a_head_beyond_the_limits_is_refused_before_more_of_it_is_held(data: bytes, status: int, piece: int) -> None:
    with pytest.raises(HeadError) as refused:
        fed(data, piece)
    assert refused.value.status == status
    assert len(refused.value.message) < 100
    assert refused.value.line.startswith(b"GET /")
    assert len(refused.value.line) <= 1024


def test_lines_are_counted_once_however_small_the_pieces_are() -> None:
    class Counting(bytearray):
        counted = 0

        def count(self, sub: Any, start: Any = 0, end: Any = 2**62, /) -> int:
            Counting.counted += min(end, len(self)) - start
            return super().count(sub, start, end)

    buffer = LimitedBuffer()
    buffer._data = Counting()
    size = 200_000
    for _ in range(size // 100):
        buffer._data += b"x: " + b"v" * 394 + b"\r\n" if buffer._data else b"GET / HTTP/1.1\r\n"
        assert buffer.maybe_extract_lines() is None
        if len(buffer) > size:
            break
    assert len(buffer) <= Counting.counted + 3 * MAX_FIELDS + 400
    assert Counting.counted <= len(buffer)


@pytest.mark.parametrize(
    "lines",
    [
        [b"GET / HTTP/1.1", b"Host: " + b"\xc3\xa9" * 50_000],
        [b"GET / HTTP/1.1", b"HOST:" + b"a" * MAX_HOST],
        [b"GET http://" + b"\xc3\xa9" * 30_000 + b"/ HTTP/1.1"],
        [b"GET http://" + b"a" * 1000 + b" HTTP/1.1"],
        [b"CONNECT " + b"a" * 1000 + b":443 HTTP/1.1"],
    ],
)
def test_a_host_of_excessive_length_is_refused_before_it_is_looked_at(lines: list[bytes]) -> None:
    with pytest.raises(ValueError, match="is longer than 512 bytes"):
        check_authority(lines)


@pytest.mark.parametrize(
    "lines",
    [
        [b"GET /" + b"a" * 60_000 + b" HTTP/1.1", b"Host: a"],
        [b"GET http://a/" + b"b" * 60_000 + b" HTTP/1.1", b"Hosts: " + b"a" * 1000],
        [b"OPTIONS * HTTP/1.1", b"x: " + b"host:" * 1000],
        [b"nonsense"],
        [b""],
    ],
)
def test_other_things_may_be_long(lines: list[bytes]) -> None:
    check_authority(lines)


def test_the_line_before_a_chunk_has_an_end() -> None:
    check_chunk_line(MAX_CHUNK_LINE)
    with pytest.raises(h11.RemoteProtocolError, match="4096 bytes"):
        check_chunk_line(MAX_CHUNK_LINE + 1)
