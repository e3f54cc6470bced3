"""Ends broken streams so that clients read an error, wherever the stream was cut."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .errors import error_body, error_event
from .routes import Dialect

if TYPE_CHECKING:
    from .events import PartialEvent

MAX_COMPLETED = 64 * 1024
"""Bytes of the longest cut event that is completed; a longer one stays malformed."""

_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"?|[{}\[\]]', re.DOTALL)
_CLOSING = {b"{": b"}", b"[": b"]"}

# What may be missing of the value or the name in whose middle an object was cut.
_LITERALS = [word[at:] for word in (b"true", b"false", b"null") for at in range(1, len(word))]
_ESCAPES = [
    b'\\"',
    b'0041"',
    b'041"',
    b'41"',
    b'1"',
    b'00\\udc00"',
    b'0\\udc00"',
    *(b'\\udc00"'[at:] for at in range(6)),
]
_MISSING = [b"", b'"', b"null", b'"":null', b":null", b'":null', b"0", *_LITERALS, *_ESCAPES]
_MISSING += [escape + b":null" for escape in _ESCAPES]


def error_trailer(dialect: Dialect, content_type: str, partial_event: PartialEvent, message: str) -> bytes:
    """The bytes to append to a broken stream so that its client reads an error event and nothing malformed.

    `partial_event` is what came after the last complete event. An event that was cut is completed into the error event,
    because what was sent of it cannot be taken back.
    """
    event = error_event(dialect, content_type, message)
    new_line = b"\n" if partial_event.line else b""
    if not partial_event.data.strip():
        return new_line + event
    is_sse = "event-stream" in content_type
    if not _is_whole(partial_event.data):
        completion = _complete(partial_event.data, error_body(dialect, 502, message)[1:])
        if completion is not None:
            if not is_sse:
                return completion + b"\n"
            if not partial_event.line.startswith(b"data:"):
                completion = new_line + b"data: " + completion
            fields, _, _ = event.partition(b"data:")
            return completion + b"\n" + fields + b"\n"
    return new_line + (b"\n" if is_sse else b"") + event


def _complete(cut: bytes, members: bytes) -> bytes | None:
    """The end that makes an object that was cut anywhere one with these members (their JSON and a closing brace)."""
    open_ones: list[bytes] = []
    if len(cut) > MAX_COMPLETED:
        return None
    for token in _STRUCTURE.findall(cut):
        if token in _CLOSING:
            open_ones.append(_CLOSING[token])
        elif open_ones and token == open_ones[-1]:
            open_ones.pop()
    if not open_ones or open_ones[0] != b"}":
        return None
    closing = b"".join(reversed(open_ones[1:]))
    expected = json.loads(b"{" + members)
    for character in _characters(cut):
        for missing in _MISSING:
            for comma in (b",", b""):
                end = character + missing + closing + comma + members
                value = _parse(cut + end)
                if value is not None and value | expected == value:
                    return end
    return None


def _characters(cut: bytes) -> Iterator[bytes]:
    """What may end the UTF-8 character in whose middle a text was cut."""
    for size in range(4):
        for first in (b"\x80", b"\x90", b"\xa0"):
            rest = (first + b"\x80" * size)[:size]
            try:
                (cut[-4:] + rest).lstrip(bytes(range(0x80, 0xC0))).decode()
            except UnicodeDecodeError:
                continue
            yield rest
            return


def _parse(data: bytes) -> dict[str, object] | None:
    """As the clients' own parser reads it."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_whole(data: bytes) -> bool:
    return data.startswith(b"[DONE]") or _parse(data) is not None
