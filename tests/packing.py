"""Compresses as servers do that flush each piece of a stream, for tests."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable
from typing import Any

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ENCODINGS = ("gzip", "deflate", "raw deflate", "br", "zstd")
BITS = {"gzip": 31, "deflate": 15, "raw deflate": -15}


def header_of(encoding: str) -> str:
    """What stands in the Content-Encoding."""
    return encoding.removeprefix("raw ")


class Packer:
    """One compressed body."""

    def __init__(self, encoding: str) -> None:
        self.add: Callable[[bytes], bytes]
        """What goes out for a piece, so that all of it can be read."""
        self.end: Callable[[], bytes]
        packer: Any
        match encoding:
            case "zstd":
                packer = zstd.ZstdCompressor()
                self.add = lambda text: packer.compress(text) + packer.flush(packer.FLUSH_BLOCK)
                self.end = lambda: bytes(packer.flush(packer.FLUSH_FRAME))
            case "br":
                packer = brotli.Compressor(quality=5)
                self.add = lambda text: packer.process(text) + packer.flush()
                self.end = packer.finish
            case _:
                packer = zlib.compressobj(6, zlib.DEFLATED, BITS[encoding])
                self.add = lambda text: packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH)
                self.end = packer.flush


def packed(encoding: str, text: bytes) -> bytes:
    packer = Packer(encoding)
    return packer.add(text) + packer.end()


def plainly_unpacked(encoding: str, data: bytes) -> bytes:
    """What the libraries themselves make of a whole body, with their own exceptions."""
    match encoding:
        case "zstd":
            return bytes(zstd.decompress(data))
        case "br":
            return bytes(brotli.decompress(data))
        case "gzip":
            return gzip.decompress(data)
        case _:
            return zlib.decompress(data, BITS[encoding])
