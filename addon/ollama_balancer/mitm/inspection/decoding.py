"""Bounded decompression of bodies for display, search, filters and export.

mitmproxy decompresses a body whenever its content is used, however large it becomes. Here a body that grows too much is
shown as it came. Python's codecs are restricted too: mitmproxy accepts all of their names as Content-Encoding or
charset, and some of them decompress.
"""

import codecs
import struct
import types
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from mitmproxy import contentviews
from mitmproxy.contentviews import InteractiveContentview, Metadata, SyntaxHighlight
from mitmproxy.net import encoding

from ...ollama.decompression import TooLargeError, decompress
from ..compat.mitmproxy_names import install_view
from ..compat.names import Patches
from ..compat.python_names import is_of_text

MAX_GROWTH = 10
"""Into how many bytes one may be unpacked."""

MIN_LIMIT = 1024 * 1024
"""Bytes that any body may be unpacked into."""

MAX_BYTES = 16 * 1024 * 1024
"""That no body may be unpacked beyond."""

MAX_KNOWN = 4096
"""Bodies that are known to be too large: a filter looks at each of them again and again."""

_too_large: OrderedDict[tuple[int, int], None] = OrderedDict()
"""By hash and length. Python keeps a body's hash with it."""


def limit_for(body: bytes) -> int:
    """Bytes that it may be unpacked into."""
    return min(MAX_BYTES, max(MIN_LIMIT, MAX_GROWTH * len(body)))


def _bounded(unpack: Callable[[bytes, int], bytes]) -> Callable[[bytes], bytes]:
    def decode(body: bytes) -> bytes:
        if not body:
            return b""
        most, key = limit_for(body), (hash(body), len(body))
        if key in _too_large:
            _too_large.move_to_end(key)
            raise _error(most)
        try:
            return unpack(body, most)
        except TooLargeError:
            _too_large[key] = None
            if len(_too_large) > MAX_KNOWN:
                _too_large.popitem(last=False)
            raise

    return decode


def _error(most: int) -> TooLargeError:
    return TooLargeError(f"it decompresses to more than {most} bytes")


def _inflate(body: bytes, most: int, form: int) -> bytes:
    """As mitmproxy does, which takes what breaks off."""
    stream = zlib.decompressobj(form)
    text = stream.decompress(body, most + 1)
    if len(text) > most:
        raise _error(most)
    return text + stream.flush()


def _deflate(body: bytes, most: int) -> bytes:
    try:
        return _inflate(body, most, zlib.MAX_WBITS)
    except zlib.error:
        return _inflate(body, most, -zlib.MAX_WBITS)


def _decode_text(body: Any, name: str = "utf-8", errors: str = "strict") -> Any:
    """`codecs.decode`, of encodings of text alone."""
    if not is_of_text(codecs.lookup(name)):
        raise ValueError("no encoding of text")
    return codecs.decode(body, name, errors)


class BoundedGrpc(InteractiveContentview):
    """mitmproxy's view of gRPC, whose messages may each be compressed, without those that unpack into too much."""

    name = "gRPC"

    def __init__(self, view: Any) -> None:
        self._view = view

    @property
    def syntax_highlight(self) -> SyntaxHighlight:
        highlight: SyntaxHighlight = self._view.syntax_highlight
        return highlight

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        most, at = limit_for(data), 0
        while at + 5 <= len(data):
            compressed, size = struct.unpack_from(">?I", data, at)
            message = data[at + 5 : at + 5 + size]
            at += 5 + size
            if compressed:
                most -= len(_first(message, most))
        text: str = self._view.prettify(data, metadata)
        return text

    def reencode(self, prettified: str, metadata: Metadata) -> bytes:
        data: bytes = self._view.reencode(prettified, metadata)
        return data

    def render_priority(self, data: bytes, metadata: Metadata) -> float:
        priority: float = self._view.render_priority(data, metadata)
        return priority


def _first(message: bytes, most: int) -> bytes:
    """What it unpacks into. TooLargeError: that is more than `most` bytes."""
    for form in (32 + zlib.MAX_WBITS, -zlib.MAX_WBITS):
        try:
            return _inflate(message, max(0, most), form)
        except zlib.error:
            pass
    return b""  # the view finds the same


def bound_views(patches: Patches) -> None:
    """Have mitmproxy's views that unpack do so within bounds."""
    view = contentviews.registry.get("grpc")
    if view is not None:
        install_view(BoundedGrpc(view))
        patches.on_restore(lambda: install_view(view))


DECODERS = encoding.custom_decode | {
    "gzip": _bounded(lambda body, most: _inflate(body, most, 32 + zlib.MAX_WBITS)),
    "deflate": _bounded(_deflate),
    "deflateraw": _bounded(_deflate),
    "br": _bounded(lambda body, most: decompress(body, "br", most)),
    "zstd": _bounded(lambda body, most: decompress(body, "zstd", most)),
}
"""For `mitmproxy.net.encoding`, by the name of the Content-Encoding."""

CODECS = types.SimpleNamespace(decode=_decode_text, encode=codecs.encode)
"""For `mitmproxy.net.encoding`, which uses these two of the module."""
