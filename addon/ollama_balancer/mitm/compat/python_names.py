"""What the balancer uses of the insides of Python's own library."""

import asyncio
import codecs
import selectors
import socket
from typing import Any, cast

from .names import Name, Use


def has_unread(reader: asyncio.StreamReader) -> bool:
    """Whether something has come that nobody has read yet."""
    return bool(reader._buffer)  # type: ignore[attr-defined]


def selector_of(loop: asyncio.AbstractEventLoop) -> selectors.BaseSelector | None:
    """None: the loop has none, as on Windows."""
    return cast("selectors.BaseSelector | None", getattr(loop, "_selector", None))


def set_selector(loop: asyncio.AbstractEventLoop, selector: selectors.BaseSelector) -> None:
    loop._selector = selector  # type: ignore[attr-defined]


def socket_of(transport: asyncio.BaseTransport) -> socket.socket | None:
    """The transport's own socket, which asyncio gives out wrapped, without what reads and writes."""
    found = getattr(transport.get_extra_info("socket"), "_sock", None)
    return found if isinstance(found, socket.socket) else None


def is_of_text(codec: codecs.CodecInfo) -> bool:
    """Whether it is an encoding of text, and not one of those that unpack or transform bytes."""
    return codec._is_text_encoding


def _is_reader(kind: type[asyncio.StreamReader]) -> bool:
    return "_buffer" in kind.feed_data.__code__.co_names and "_buffer" in kind.at_eof.__code__.co_names


def _has_socket(kind: Any) -> bool:
    return "_sock" in kind.__slots__


def _has_selector(kind: Any) -> bool:
    return "_selector" in kind.__init__.__code__.co_names


def _distinguishes_text(lookup_codec: Any) -> bool:
    return is_of_text(lookup_codec("utf-8")) and not is_of_text(lookup_codec("zip"))


NAMES = [
    Name("codecs:lookup", fits=_distinguishes_text),
    Name("asyncio:StreamReader", Use.RELAY, _is_reader),
    Name("asyncio.trsock:TransportSocket", Use.SELECTOR, _has_socket),
    Name("asyncio.selector_events:BaseSelectorEventLoop", Use.SELECTOR, _has_selector),
]
