"""Collects bodies without a copy, and many small chunks at once."""

from __future__ import annotations

import io
import re
from typing import Any

import h11

from .compat import h11_names
from .compat.h11_names import ChunkedReader, ReceiveBuffer
from .head_limits import check_chunk_line

MAX_AT_ONCE = 256 * 1024
"""Bytes of small chunks that are joined."""

_LINE_END = b"\r\n"
_SIZE = re.compile(rb"([0-9a-fA-F]{1,4})\r\n")

# Chunks of up to 15 bytes, which a body may have by the ten thousand: a run of them is taken as one.
_CHUNK_OF = {size: b"[%x%X]\r\n(.{%d})\r\n" % (size, size, size) for size in range(1, 16)}
_EQUAL_RUN = {
    size: re.compile(b"(?:%s){8,}+" % chunk.replace(b"(", b"(?:"), re.DOTALL) for size, chunk in _CHUNK_OF.items()
}
_TINY = re.compile(b"|".join(_CHUNK_OF.values()), re.DOTALL)
_TINY_RUN = re.compile(b"(?:%s)++" % _TINY.pattern.replace(b"(", b"(?:"), re.DOTALL)
_ALL_GROUPS = b"".join(b"\\%d" % size for size in _CHUNK_OF)


class BodyBuffer:
    """Replaces mitmproxy's buffer, whose content is copied at the end, which is slow for a large body.

    `BytesIO` shares the bytes that `getvalue` returns.
    """

    def __init__(self) -> None:
        self._bytes = io.BytesIO()

    def __iadd__(self, data: bytes) -> BodyBuffer:
        self._bytes.write(data)
        return self

    def __len__(self) -> int:
        return self._bytes.tell()

    def __bool__(self) -> bool:
        return self._bytes.tell() > 0

    def __bytes__(self) -> bytes:
        return self._bytes.getvalue()

    def clear(self) -> None:
        self._bytes = io.BytesIO()


class CoalescingReader(ChunkedReader):
    """h11's reader of chunked bodies, which takes all complete chunks at once.

    h11 needs 10 µs for each chunk and mitmproxy's layers ten times that. Trailers are dropped: mitmproxy raises
    NotImplementedError at them, which leaves the client without an end.
    """

    def __call__(self, buffer: ReceiveBuffer) -> Any:
        if h11_names.awaited_line_end(self) == _LINE_END and h11_names.bytes_of(buffer)[:2] == _LINE_END:
            buffer.maybe_extract_at_most(2)
            h11_names.forget_line_end(self)
        if h11_names.is_between_chunks(self):
            payload = _take_whole_chunks(buffer)
            if payload:
                return h11.Data(data=payload)
        event = super().__call__(buffer)
        if event is None and not h11_names.is_in_trailer(self):
            check_chunk_line(len(buffer))
        return h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) and event.headers else event


def _take_whole_chunks(buffer: ReceiveBuffer) -> bytes:
    """Payloads of all plain chunks at the start of the buffer, at most MAX_AT_ONCE bytes; b"" if there are none."""
    data = h11_names.bytes_of(buffer)
    payloads: list[bytes] = []
    at, end, left = 0, len(data), MAX_AT_ONCE
    while left > 0 and (size_line := _SIZE.match(data, at)) is not None:
        size, start = int(size_line[1], 16), size_line.end()
        stop = start + size
        if not size or stop + 2 > end or data[stop : stop + 2] != _LINE_END:
            break  # the last one, one that is not whole, or one that is malformed: that is h11's to say
        if start - at == 3:  # one digit
            at, payload = _take_tiny_chunks(data, at, size)
            payloads.append(payload)
            left -= len(payload)
            continue
        payloads.append(bytes(data[start:stop]))
        at = stop + 2
        left -= size
    if not payloads:
        return b""
    buffer.maybe_extract_at_most(at)
    return payloads[0] if len(payloads) == 1 else b"".join(payloads)


def _take_tiny_chunks(data: bytearray, at: int, size: int) -> tuple[int, bytes]:
    """The end and the payload of the run of small chunks that starts at `at` with a complete one of that size."""
    equal = _EQUAL_RUN[size].match(data, at)
    if equal is None:
        run = _TINY_RUN.match(data, at)
        assert run is not None
        return run.end(), _TINY.sub(_ALL_GROUPS, run[0])
    run_of_equals, step = equal[0], size + 5
    payload = bytearray(len(run_of_equals) // step * size)
    for offset in range(size):
        payload[offset::size] = run_of_equals[3 + offset :: step]
    return equal.end(), bytes(payload)
