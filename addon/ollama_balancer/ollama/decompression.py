"""Bounded decompression of bodies as they pass.

It runs in the event loop, and a few bytes may expand to gigabytes: each piece may only grow by a factor, and a body
that grows more is not parsed.
"""

import struct
import sys
import zlib
from typing import Any, Protocol

import brotli  # as mitmproxy needs it; before 1.2 it has no bounds and is not used

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_ERRORS = (zlib.error, zstd.ZstdError, EOFError)

MAX_GROWTH = 64
"""Into how many bytes one of an answer may be unpacked; JSON of short events comes to some twenty."""

MIN_LIMIT = 64 * 1024
"""Bytes that any piece may be unpacked into."""

MAX_MEMBERS = 16
"""Parts, each compressed by itself, that one body may have: what follows a part is copied."""

ZSTD_WINDOW_LOG = 23
"""The server takes windows of up to 8 MiB."""


class DecompressionError(ValueError):
    """The data is not valid for its encoding or is truncated."""


class TooLargeError(DecompressionError):
    """It exceeds the limit after decompression."""


class Decompressor(Protocol):
    """One body, fed in pieces."""

    def feed(self, data: bytes, most: int) -> bytes:
        """What this piece adds. UnpackingError; TooLargeError: it is more than `most` bytes."""

    @property
    def ended(self) -> bool:
        """Whether the body may end here."""

    def encode_trailer(self, text: bytes) -> bytes | None:
        """The bytes that make the decompressed body end with `text`; None if that is not possible."""


def decompressor_for(encoding: str) -> Decompressor | None:
    """The decompressor for a Content-Encoding; None if it is unknown or cannot be bounded."""
    match encoding.strip().lower():
        case "gzip" | "x-gzip":
            return _Deflate(31)
        case "deflate":
            return _Deflate(15)
        case "br" if hasattr(brotli.Decompressor, "can_accept_more_data"):
            return _Brotli()
        case "zstd":
            return _Zstd()
    return None


def decompress(body: bytes, encoding: str, most: int) -> bytes:
    """A whole body. UnpackingError: it is not of that encoding, or breaks off; TooLargeError: it has more bytes."""
    unpacker = decompressor_for(encoding)
    if unpacker is None:
        raise DecompressionError(f"the encoding {encoding[:40]!r} is not supported")
    text = unpacker.feed(body, most)
    if not unpacker.ended:
        raise DecompressionError("it is truncated")
    return text


class _Members:
    """A body of one part or more, each of which is a stream of its own."""

    def __init__(self) -> None:
        self._members = 0
        self._stream: Any = None

    def feed(self, data: bytes, most: int) -> bytes:
        parts: list[bytes] = []
        room = most
        while data:
            if self._stream is None or self._stream.eof:
                if not self._goes_on(data):
                    break
                self._members += 1
                if self._members > MAX_MEMBERS:
                    raise DecompressionError("it has too many parts")
                self._stream = self._begin(data)
            try:
                part, data = self._take(data, room + 1)
            except _ERRORS as e:
                raise DecompressionError(str(e)) from None
            room -= len(part)
            if room < 0:
                raise TooLargeError(f"it decompresses to more than {most} bytes")
            parts.append(part)
        return b"".join(parts)

    @property
    def ended(self) -> bool:
        return self._stream is not None and bool(self._stream.eof)

    def encode_trailer(self, text: bytes) -> bytes | None:
        return None

    def _goes_on(self, data: bytes) -> bool:
        """Whether this may be another part."""
        return True

    def _begin(self, data: bytes) -> Any:
        raise NotImplementedError

    def _take(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        """At most that many bytes, and what was not needed for them."""
        raise NotImplementedError


class _Zstd(_Members):
    def _begin(self, data: bytes) -> Any:
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})

    def _take(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        part: bytes = self._stream.decompress(data, most)
        if len(part) < most and not self._stream.eof and not self._stream.needs_input:
            part += self._stream.decompress(b"", most - len(part))
        return part, self._stream.unused_data if self._stream.eof else b""


class _Deflate(_Members):
    """`format_bits`: 31 for gzip, 15 for zlib's format, in whose place some servers send it without head and end."""

    def __init__(self, format_bits: int) -> None:
        super().__init__()
        self._format = format_bits
        self._head = b""
        self._check = 0
        self._size = 0

    def feed(self, data: bytes, most: int) -> bytes:
        if self._format == 15 and self._stream is None:
            # Which of the two it is, only the first two bytes say.
            self._head += data
            if len(self._head) < 2:
                return b""
            data, self._head = self._head, b""
        return super().feed(data, most)

    def _goes_on(self, data: bytes) -> bool:
        return self._stream is None or (self._format == 31 and data[0] == 0x1F)  # anything else is padding

    def _begin(self, data: bytes) -> Any:
        if self._format == 15 and (data[0] & 15 != 8 or (data[0] << 8 | data[1]) % 31):
            self._format = -15
        self._check, self._size = int(self._format == 15), 0
        return zlib.decompressobj(self._format)

    def _take(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        part: bytes = self._stream.decompress(data, most)
        self._count(part)
        return part, self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail

    def _count(self, part: bytes) -> None:
        self._size += len(part)
        if self._format == 31:
            self._check = zlib.crc32(part, self._check)
        elif self._format == 15:
            self._check = zlib.adler32(part, self._check)

    def encode_trailer(self, text: bytes) -> bytes | None:
        """Servers that compress streams flush after each event, so another block may follow."""
        if self._stream is None or self._stream.eof:
            return None
        compressor = zlib.compressobj(0, zlib.DEFLATED, -15)
        end = compressor.compress(text) + compressor.flush()
        if self._format == 31:
            end += struct.pack("<II", zlib.crc32(text, self._check), (self._size + len(text)) & 0xFFFFFFFF)
        elif self._format == 15:
            end += struct.pack(">I", zlib.adler32(text, self._check))
        reader = self._stream.copy()
        try:
            return end if reader.decompress(end) == text and reader.eof else None
        except zlib.error:
            return None


class _Brotli:
    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    def feed(self, data: bytes, most: int) -> bytes:
        if not data:
            return b""
        if self._stream.is_finished():
            raise DecompressionError("data follows its end")
        try:
            text: bytes = self._stream.process(data, output_buffer_limit=most + 1)
        except brotli.error as e:
            raise DecompressionError(str(e)) from None
        if len(text) > most or not (self._stream.is_finished() or self._stream.can_accept_more_data()):
            raise TooLargeError(f"it decompresses to more than {most} bytes")
        return text

    @property
    def ended(self) -> bool:
        return bool(self._stream.is_finished())

    def encode_trailer(self, text: bytes) -> bytes | None:
        return None
