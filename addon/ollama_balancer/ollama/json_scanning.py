"""Locates the values of a JSON text without building them.

A body may contain tens of megabytes of images and is scanned in the event loop, so scanning must be fast on any input:
long strings and runs of numbers are skipped by `bytes.find`, the rest by regular expressions without backtracking, a
few tokens at a time. MAX_STEPS bounds the remaining loops.

"As Go reads it" is the Ollama server's package encoding/json, whose Decoder reads one value and ignores what follows.
"""

import json
import re
from collections.abc import Iterator
from typing import NoReturn

MAX_DEPTH = 10_000
"""Nested objects and arrays; Go rejects deeper nesting too (`maxNestingDepth`)."""

MAX_STEPS = 100_000
"""Roughly the brackets, twice the long strings and a quarter of the short ones in one body: about 8 for a message of a
chat. A body with more than this is not read, as that would hold up every other request."""

MAX_TEXT = 65_536
"""Bytes decoded of a string: no model has a longer name."""

MAX_STRICT = 1 << 20
"""Bytes of the largest body that is validated strictly."""

MAX_STRICT_VALUES = 30_000
"""Values of such a body: a MiB of empty objects takes half a second."""

MAX_BLANKS = 4_194_304
"""Consecutive whitespace bytes, and digits of a number: longer runs are rejected, as a match blocks the event loop."""

MAX_VALUES = 150_000
"""Values of the largest JSON text that is parsed: more would block the event loop for too long."""

LIGHT = 65_536
"""Bytes of a JSON text that is parsed without counting its values."""

Span = tuple[int, int]
"""The start and end offsets of a value in the body."""

EMPTY_LIST = re.compile(rb"\[[ \t\r\n]*+\]")

_QUOTE, _BACKSLASH, _OPENING, _CLOSING = ord('"'), ord("\\"), b"[{", b"]}"
_MARKS = (b'"', b"[", b"]", b"{", b"}")

# The bounds keep what one step takes in proportion to what it is charged. A quote after exactly one backslash is
# escaped; whether one after several is, only their number says, and that is left to string_end().
_ESCAPED_QUOTES = re.compile(rb'(?:[^"]{0,512}+(?<=[^\\]\\)"){0,256}+')
_SHORT_STRING = rb'"[^"]{0,512}+(?:(?<=[^\\]\\)"[^"]{0,512}+){0,32}+(?<!\\)"'
_SKIP = re.compile(rb'[^][{}"]{0,128}+(?:' + _SHORT_STRING + rb'[^][{}"]{0,64}+){0,4}+')
_BLANKS = rb"[ \t\r\n]{0,%d}+" % MAX_BLANKS
_DIGITS = rb"{1,%d}+" % MAX_BLANKS
_START = re.compile(_BLANKS + rb"\{" + _BLANKS + rb"(\}?+)")
_COLON = re.compile(_BLANKS + rb":" + _BLANKS)
_A_SCALAR = (
    rb"-?(?:0|[1-9](?:[0-9]"
    + _DIGITS
    + rb")?+)(?:\.[0-9]"
    + _DIGITS
    + rb")?+(?:[eE][-+]?[0-9]"
    + _DIGITS
    + rb")?+(?![0-9])"
    rb"|true|false|null"
)
_SCALAR = re.compile(_A_SCALAR)
_COMMA = re.compile(_BLANKS + rb"," + _BLANKS)
# A member with a short key and, if its value is short and no object or array, with the value and what comes after it.
_MEMBER = re.compile(
    rb'"([^"\\]{0,32}+)"'
    + _COLON.pattern
    + rb'(?:("[^"\\]{0,256}+"|'
    + _A_SCALAR
    + rb")(?:("
    + _COMMA.pattern
    + rb")|"
    + _BLANKS
    + rb"(?=\})))?+"
)
_BLANK = re.compile(_BLANKS)
_END = re.compile(_BLANKS + rb"\}")


class UnreadableError(ValueError):
    """The body does not begin with a JSON object, or scanning it would take too long."""


class Scanner:
    """Finds the ends of values. Raises IndexError at the end of the text."""

    def __init__(self, body: bytes, steps: int = MAX_STEPS) -> None:
        self.body = body
        self.steps = steps
        self.marks = [-1] * len(_MARKS)

    def members(self, at: int = 0) -> Iterator[tuple[str, int, int]]:
        """The members of the object that begins there, in order: key in lower case, start, end."""
        body = self.body
        start = _START.match(body, at)
        if start is None:
            raise UnreadableError
        at = start.end()
        end = start[1] or None
        while end is None:
            self.spend(8)
            member = _MEMBER.match(body, at)
            if member is not None:
                key, at = _folded(member[1]), member.end()
                first, last = member.span(2)
                if last > 0:
                    yield key, first, last
                    if member[3] is None:
                        return
                    continue
            else:
                key, at = self.other_key(at)
            first = at
            at = self.value_end(at)
            yield key, first, at
            comma = _COMMA.match(body, at)
            if comma is not None:
                at = comma.end()
            else:
                end = _END.match(body, at)
                if end is None:
                    raise UnreadableError

    def elements(self, at: int) -> Iterator[Span]:
        """The elements of the array that begins there."""
        body = self.body
        at = _BLANK.match(body, at + 1).end()  # type: ignore[union-attr]  # it matches the empty text as well
        if body[at] == _CLOSING[0]:
            return
        while True:
            self.spend(4)
            first = at
            at = self.value_end(at, 3)
            yield first, at
            comma = _COMMA.match(body, at)
            if comma is None:
                return
            at = comma.end()

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise UnreadableError

    def other_key(self, at: int) -> tuple[str, int]:
        """A key with escapes or a long one, and where its value starts."""
        self.spend(8)
        if self.body[at] != _QUOTE:
            raise UnreadableError
        end = self.string_end(at + 1)
        colon = _COLON.match(self.body, end)
        if colon is None:
            raise UnreadableError
        return _folded((text_of(self.body, (at, end)) or "").encode()), colon.end()

    def value_end(self, at: int, depth: int = 2) -> int:
        """The end of the value at `at`. `depth` is its nesting depth, itself included."""
        first = self.body[at]
        if first == _QUOTE:
            return self.string_end(at + 1)
        if first in _OPENING:
            return self.nested_end(at + 1, depth)
        scalar = _SCALAR.match(self.body, at)
        if scalar is None:
            raise UnreadableError
        return scalar.end()

    def string_end(self, at: int) -> int:
        """`at` is after the opening quote."""
        body, size = self.body, 256
        while True:
            quote = body.find(b'"', at)
            if quote < 0:
                raise UnreadableError
            if body[quote - 1] != _BACKSLASH:
                return quote + 1
            self.spend(2)
            if body[quote - 2] == _BACKSLASH and (quote - at - len(body[at:quote].rstrip(b"\\"))) % 2 == 0:
                return quote + 1
            at = _ESCAPED_QUOTES.match(body, quote + 1).end()  # type: ignore[union-attr]
            size *= 2
            if size < 2_048:
                continue
            # A string with many of them. In a copy in which the escapes that matter are blotted out, the first quote
            # that is left is the string's end; a copy that ends within an escape still has its backslash there.
            copy = body[at : at + size].replace(b"\\\\", b"..").replace(b'\\"', b"..")
            end = copy.find(b'"')
            if end >= 0:
                return at + end + 1
            at += len(copy) - copy.endswith(b"\\")
            size = min(size, 1 << 19)

    def nested_end(self, at: int, depth: int) -> int:
        """`at` is after the opening bracket. Which bracket closes which is not checked."""
        body, skip, steps = self.body, _SKIP.match, self.steps
        outside = depth - 1
        while depth > outside:
            before = at
            at = skip(body, at).end()  # type: ignore[union-attr]  # it matches the empty text as well
            mark = body[at]
            steps -= 1 + (at - before >> 8)
            if steps < 0:
                raise UnreadableError
            if mark in _CLOSING:
                depth -= 1
                at += 1
            elif mark in _OPENING:
                depth += 1
                at += 1
                if depth > MAX_DEPTH:
                    raise UnreadableError
            elif mark == _QUOTE:
                self.steps = steps - 1
                at = self.string_end(at + 1)
                steps = self.steps
            else:
                steps -= 3
                at = self.next_mark(at)
        self.steps = steps
        return at

    def next_mark(self, at: int) -> int:
        """The next quote or bracket. Each part of the body is searched only once for each of them."""
        marks = self.marks
        for number, known in enumerate(marks):
            if known < at:
                found = self.body.find(_MARKS[number], at)
                marks[number] = found if found >= 0 else len(self.body)
        return min(marks)


def is_light(text: bytes, most: int = MAX_VALUES) -> bool:
    """Whether a JSON text can be parsed without blocking the event loop for too long."""
    if len(text) <= LIGHT:
        return True
    return text.count(b",") + text.count(b"[") + text.count(b"{") <= most


def _folded(key: bytes) -> str:
    """The key in lower case. As in Go, a long s counts as an s; lower() handles the Kelvin sign."""
    if key.isascii():
        return key.decode().lower()
    return key.decode("utf-8", "replace").replace("ſ", "s").lower()


def written(body: bytes, span: Span | None, longest: int) -> bytes:
    """The raw bytes of a value; empty if it is missing or longer than `longest`."""
    return body[span[0] : span[1]] if span is not None and span[1] - span[0] <= longest else b""


def text_of(body: bytes, span: Span | None) -> str | None:
    """The text of a string; None for other types and malformed strings."""
    if span is None or body[span[0]] != _QUOTE:
        return None
    start, end = span
    if end - start > MAX_TEXT:  # too long to mean anything, so that escapes can stay as they are
        return well_formed(body[start + 1 : start + MAX_TEXT].decode("utf-8", "replace"))
    plain = body[start + 1 : end - 1]
    if plain.isascii() and b"\\" not in plain and (text := plain.decode()).isprintable():
        return text
    try:
        text = json.loads(body[start:end].decode("utf-8", "replace"))
    except ValueError:
        return None
    return well_formed(text)


def well_formed(text: str) -> str:
    """Replace lone surrogates, which JSON can express but logs and files cannot store."""
    return text.encode("utf-8", "replace").decode()


def _is_shallow(body: bytes) -> bool:
    """Whether the first value of the body is nested no deeper than Go allows."""
    try:
        at = len(body) - len(body.lstrip(b" \t\r\n"))
        Scanner(body, steps=4 * len(body)).value_end(at, depth=1)
    except (UnreadableError, IndexError):
        return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


_OPENINGS = re.compile(rb"[\[ \t\r\n]*+")

# Numbers stay as they are written: Python refuses to make one of thousands of digits.
_STRICT = json.JSONDecoder(parse_constant=_no_constant, parse_int=str, parse_float=str)


def is_json(body: bytes) -> bool:
    """Whether the first JSON value of the body is valid as Go reads it; assumed if the body is too large to check."""
    if len(body) > MAX_STRICT:
        return True
    if not is_light(body, MAX_STRICT_VALUES):
        return len(_OPENINGS.match(body)[0].translate(None, b" \t\r\n")) <= MAX_DEPTH  # type: ignore[index]
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        _STRICT.raw_decode(text)
    except RecursionError:
        return _is_shallow(body)  # Python's own limit may be lower
    except ValueError:
        return False
    return body.count(b"[") + body.count(b"{") <= MAX_DEPTH or _is_shallow(body)
