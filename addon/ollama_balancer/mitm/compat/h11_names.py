"""What the balancer uses of h11's insides, by which mitmproxy reads HTTP/1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .names import Name, lookup

if TYPE_CHECKING:
    from h11._readers import ChunkedReader as ChunkedReader
    from h11._receivebuffer import ReceiveBuffer as ReceiveBuffer
else:
    ChunkedReader = lookup("h11._readers:ChunkedReader")
    ReceiveBuffer = lookup("h11._receivebuffer:ReceiveBuffer")


def bytes_of(buffer: ReceiveBuffer) -> bytearray:
    """What has come and was not taken yet, without a copy."""
    return buffer._data


def is_between_chunks(reader: ChunkedReader) -> bool:
    """Whether the next byte is the first of a chunk's size."""
    return not reader._bytes_in_chunk and not reader._bytes_to_discard and not reader._reading_trailer


def awaited_line_end(reader: ChunkedReader) -> bytes:
    """What is still to come of the line end behind a chunk."""
    return reader._bytes_to_discard


def forget_line_end(reader: ChunkedReader) -> None:
    """The line end behind a chunk has been taken."""
    reader._bytes_to_discard = b""


def is_in_trailer(reader: ChunkedReader) -> bool:
    return reader._reading_trailer


def _is_buffer(kind: type[ReceiveBuffer]) -> bool:
    buffer = kind()
    buffer += b"ab\r\n\r\nc"
    lines, rest = buffer.maybe_extract_lines(), buffer.maybe_extract_at_most(9)
    return lines == [bytearray(b"ab")] and rest == bytearray(b"c") and buffer._data == bytearray()


def _is_reader(kind: type[ChunkedReader]) -> bool:
    reader, buffer = kind(), ReceiveBuffer()
    fresh = is_between_chunks(reader)
    buffer += b"1\r\na"
    reader(buffer)
    awaits = awaited_line_end(reader) == b"\r\n" and not is_between_chunks(reader)
    buffer += b"\r\n0\r\n"
    reader(buffer)
    return fresh and awaits and is_in_trailer(reader)


NAMES = [
    Name("h11._receivebuffer:ReceiveBuffer", fits=_is_buffer),
    Name("h11._readers:ChunkedReader", fits=_is_reader),
]
