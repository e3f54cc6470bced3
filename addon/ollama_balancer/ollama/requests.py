"""What a request asks for, read as leniently as the Ollama server reads it and without building the body's values.

A body may be tens of megabytes of images and is looked at in the event loop, so that this must not take long, whatever
is sent. Only the top level of the JSON object is read; what is nested in it is skipped: long strings and runs of
numbers by `bytes.find`, the rest by regular expressions without backtracking, a few tokens at a time. MAX_STEPS bounds
the loops over what is left.

The server is written in Go; "as Go reads it" is its package encoding/json, whose Decoder reads one value and ignores
what follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from .routes import Kind, Route, last_part

MAX_DEPTH = 10_000
"""Objects and arrays in one another; what is deeper Go, too, calls malformed (`maxNestingDepth`)."""

MAX_STEPS = 100_000
"""Roughly the brackets, twice the long strings and a quarter of the short ones in one body: about 8 for a message of a
chat. A body with more than this is not read, as that would hold up every other request."""

MAX_TEXT = 65_536
"""Bytes of a string that are decoded: no model has a longer name."""

MAX_STRICT = 1 << 20
"""Bytes of a body that is checked strictly."""

MAX_PARTS = 1_000
"""Parts of a form: Go's limit (`multipartmaxparts`)."""

MAX_PART_HEAD = 8_192
"""Bytes of a part's headers."""

_MODEL, _MODEL_OR_NAME, _SOURCE = ("model",), ("model", "name"), ("source",)
_MODEL_KEYS = {
    "/api/show": _MODEL_OR_NAME,
    "/api/pull": _MODEL_OR_NAME,
    "/api/push": _MODEL_OR_NAME,
    "/api/create": _MODEL_OR_NAME,
    "/api/delete": _MODEL_OR_NAME,
    "/api/copy": _SOURCE,
}
"""The keys that name the model, by path: the first that is not empty counts. Kind.MODEL's other routes have `model`."""

_TRANSCRIPTIONS = "/v1/audio/transcriptions"
_EMPTY_MEANS_LOAD = {"/api/generate": "prompt", "/api/chat": "messages"}
_KEPT_OVER_NULL = ("model", "name", "source", "prompt")
"""Strings in the server's structs: null leaves them as they are. The other keys' fields are pointers and lists, which
null empties."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, of what the balancer has to know.

    `model` is spelled as the caller spells it; None where none is named. `readable`: the body's first JSON value is an
    object that could be read, or the form could be; True as well where the route names no model in its body, which is
    then not looked at. Not all that is readable is valid, see `is_json`. `unloads`: nothing but that the model be
    unloaded, from wherever it is loaded. `stream` is None where the request does not say.
    """

    model: str | None = None
    readable: bool = True
    unloads: bool = False
    stream: bool | None = None


def read_request(route: Route, path: str, body: bytes | None, content_type: str = "") -> Asked:
    """What a request asks for. `path` is without its query. Whatever the body is, nothing is raised."""
    if route.path == _TRANSCRIPTIONS:
        return _read_form(body or b"", content_type)
    if route.kind is Kind.MODEL and route.path.endswith("{}"):
        return Asked(_well_formed(last_part(route, path)) or None)
    keys = _MODEL_KEYS.get(route.path, _MODEL if route.kind is Kind.MODEL else ())
    if not keys:
        return Asked()
    body = body or b""
    try:
        members = _last_members(body)
    except _UnreadableError:
        return Asked(readable=False)
    model = next((text for key in keys if (text := _text(body, members.get(key)))), None)
    stream = _STREAM.get(_value(body, members.get("stream"), 5))
    return Asked(model, unloads=_unloads(route, body, members), stream=stream)


def is_json(body: bytes) -> bool:
    """Whether the body's first JSON value is valid as Go reads it; supposed of bodies longer than MAX_STRICT."""
    if len(body) > MAX_STRICT:
        return True
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        _STRICT.raw_decode(text)
    except RecursionError:
        return _is_shallow(body)  # Python's own limit may be lower
    except ValueError:
        return False
    return body.count(b"[") + body.count(b"{") <= MAX_DEPTH or _is_shallow(body)


# --- JSON -------------------------------------------------------------------------------------------------------------

Span = tuple[int, int]
"""Where a value begins and ends in the body."""

_QUOTE, _BACKSLASH, _OPENING, _CLOSING = ord('"'), ord("\\"), b"[{", b"]}"
_MARKS = (b'"', b"[", b"]", b"{", b"}")

# The bounds keep what one step takes in proportion to what it is charged. A quote after exactly one backslash is
# escaped; whether one after several is, only their number says, and that is left to string_end().
_ESCAPED_QUOTES = re.compile(rb'(?:[^"]{0,512}+(?<=[^\\]\\)"){0,256}+')
_SHORT_STRING = rb'"[^"]{0,512}+(?:(?<=[^\\]\\)"[^"]{0,512}+){0,32}+(?<!\\)"'
_SKIP = re.compile(rb'[^][{}"]{0,128}+(?:' + _SHORT_STRING + rb'[^][{}"]{0,64}+){0,4}+')
_START = re.compile(rb"[ \t\r\n]*+\{[ \t\r\n]*+")
_SHORT_KEY = re.compile(rb'"([^"\\]{0,32}+)"[ \t\r\n]*+:[ \t\r\n]*+')
_COLON = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+")
_SCALAR = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]++)?+|true|false|null")
_COMMA = re.compile(rb"[ \t\r\n]*+,[ \t\r\n]*+")
_END = re.compile(rb"[ \t\r\n]*+\}")

_STREAM = {b"true": True, b"false": False}
_EMPTY_LIST = re.compile(rb"\[[ \t\r\n]*+\]")
_ZERO = re.compile(rb"-?0(?:\.0++)?+(?:[eE][-+]?[0-9]++)?+")
# As Go's time.ParseDuration: a sign, then numbers with units; a bare 0 needs none.
_ZERO_DURATION = re.compile(r"[-+]?(?:0|(?:(?:0++(?:\.0*+)?+|\.0++)(?:ns|us|µs|μs|ms|s|m|h))++)")


class _UnreadableError(ValueError):
    """The body does not begin with a JSON object, or reading it would take too long."""


class _Scanner:
    """Finds where values of a JSON text end. Reading past the text's end is an IndexError."""

    def __init__(self, body: bytes, steps: int = MAX_STEPS) -> None:
        self.body = body
        self.steps = steps
        self.marks = [-1] * len(_MARKS)

    def members(self) -> Iterator[tuple[str, int, int]]:
        """The top-level object's members in the order in which they are written: key in lower case, start, end."""
        body = self.body
        start = _START.match(body)
        if start is None:
            raise _UnreadableError
        at = start.end()
        end = _END.match(body, at)
        while end is None:
            self.spend(8)
            short = _SHORT_KEY.match(body, at)
            if short is not None:
                key, at = _folded(short[1]), short.end()
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
                    raise _UnreadableError

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise _UnreadableError

    def other_key(self, at: int) -> tuple[str, int]:
        """A key with escapes or a long one, and where its value starts."""
        self.spend(8)
        if self.body[at] != _QUOTE:
            raise _UnreadableError
        end = self.string_end(at + 1)
        colon = _COLON.match(self.body, end)
        if colon is None:
            raise _UnreadableError
        return _folded((_text(self.body, (at, end)) or "").encode()), colon.end()

    def value_end(self, at: int, depth: int = 2) -> int:
        """`depth` counts the value itself, if it is an object or array, and those around it."""
        first = self.body[at]
        if first == _QUOTE:
            return self.string_end(at + 1)
        if first in _OPENING:
            return self.nested_end(at + 1, depth)
        scalar = _SCALAR.match(self.body, at)
        if scalar is None:
            raise _UnreadableError
        return scalar.end()

    def string_end(self, at: int) -> int:
        """`at` is after the opening quote."""
        body, size = self.body, 256
        while True:
            quote = body.find(b'"', at)
            if quote < 0:
                raise _UnreadableError
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
                raise _UnreadableError
            if mark in _CLOSING:
                depth -= 1
                at += 1
            elif mark in _OPENING:
                depth += 1
                at += 1
                if depth > MAX_DEPTH:
                    raise _UnreadableError
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
        """The next quote or bracket. Each is searched for only once in any stretch of the body."""
        marks = self.marks
        for number, known in enumerate(marks):
            if known < at:
                found = self.body.find(_MARKS[number], at)
                marks[number] = found if found >= 0 else len(self.body)
        return min(marks)


def _folded(key: bytes) -> str:
    """Keys count in any case; as in Go that includes the long s, as lower() the Kelvin sign."""
    return key.decode("utf-8", "replace").replace("ſ", "s").lower()


def _last_members(body: bytes) -> dict[str, Span]:
    """The members that count, by key in lower case."""
    found: dict[str, Span] = {}
    try:
        for key, start, end in _Scanner(body).members():
            if key not in _KEPT_OVER_NULL or _value(body, (start, end), 4) != b"null":
                found[key] = start, end
    except IndexError:
        raise _UnreadableError from None
    return found


def _value(body: bytes, span: Span | None, longest: int) -> bytes:
    """A value as it is written; nothing where it is missing or longer than that."""
    return body[span[0] : span[1]] if span is not None and span[1] - span[0] <= longest else b""


def _text(body: bytes, span: Span | None) -> str | None:
    """A string's text; None for values of other types and strings that are malformed."""
    if span is None or body[span[0]] != _QUOTE:
        return None
    start, end = span
    if end - start > MAX_TEXT:  # too long to mean anything, so that escapes can stay as they are
        return _well_formed(body[start + 1 : start + MAX_TEXT].decode("utf-8", "replace"))
    try:
        text: str = json.loads(body[start:end].decode("utf-8", "replace"))
    except ValueError:
        return None
    return _well_formed(text)


def _well_formed(text: str) -> str:
    """JSON can name half a character; logs and files cannot hold one."""
    return text.encode("utf-8", "replace").decode()


def _unloads(route: Route, body: bytes, members: dict[str, Span]) -> bool:
    content = _EMPTY_MEANS_LOAD.get(route.path)
    if content is None or "keep_alive" not in members:
        return False
    keep_alive = _value(body, members["keep_alive"], 1_024)
    if keep_alive.startswith(b'"'):
        if not _ZERO_DURATION.fullmatch(_text(keep_alive, (0, len(keep_alive))) or ""):
            return False
    elif not _ZERO.fullmatch(keep_alive):
        return False
    given = members.get(content)
    if given is None:
        return True
    if content == "prompt":
        return _value(body, given, 2) == b'""'
    return _value(body, given, 4) == b"null" or _EMPTY_LIST.fullmatch(body, *given) is not None


def _is_shallow(body: bytes) -> bool:
    """Whether the value that the body begins with is nested no deeper than Go allows."""
    try:
        at = len(body) - len(body.lstrip(b" \t\r\n"))
        _Scanner(body, steps=4 * len(body)).value_end(at, depth=1)
    except (_UnreadableError, IndexError):
        return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


# Numbers stay as they are written: Python refuses to make one of thousands of digits.
_STRICT = json.JSONDecoder(parse_constant=_no_constant, parse_int=str, parse_float=str)


# --- Forms ------------------------------------------------------------------------------------------------------------

# At most 16 parameters: none of the two headers has more than three.
_PARAMETER = rb'[ \t]*+;[ \t]*+([^\s;="]++)=("(?:[^"\\]|\\.)*+"|[^\s;"]*+)'
_NEXT_PARAMETER = re.compile(_PARAMETER)
_FORM = re.compile(rb"[ \t]*+multipart/form-data((?:" + _PARAMETER + rb"){0,16}+)[ \t]*+;?[ \t]*+", re.IGNORECASE)
_DISPOSITION = re.compile(
    rb"\n[ \t]*+content-disposition[ \t]*+:[ \t]*+form-data((?:" + _PARAMETER + rb"){0,16}+)[ \t]*+;?[ \t]*+\r?\n",
    re.IGNORECASE,
)
_LINE_END = re.compile(rb"[ \t]*+\r?\n")
_BLANK_LINE = re.compile(rb"\n\r?\n")
_QUOTED_PAIR = re.compile(rb"\\(.)")


def _read_form(body: bytes, content_type: str) -> Asked:
    form = _FORM.fullmatch(content_type.encode("utf-8", "replace"))
    boundary = _parameters(form[1]).get(b"boundary") if form is not None else None
    if not boundary:
        return Asked(readable=False)
    try:
        return Asked(_form_field(body, boundary, b"model") or None)
    except _UnreadableError:
        return Asked(readable=False)


def _form_field(body: bytes, boundary: bytes, name: bytes) -> str | None:
    """The first field of that name in multipart/form-data; files are none.

    Searching for the boundaries copies nothing. mitmproxy's own `decode_multipart` splits the files into lines, takes
    the name from the head's first line only and fails on a part without an empty line; python-multipart would be one
    more dependency, and email's parser takes quadratic time for a head of semicolons.
    """
    delimiter = b"--" + boundary
    at = 0 if body.startswith(delimiter) else body.find(b"\n" + delimiter) + 1
    if at == 0 and not body.startswith(delimiter):
        raise _UnreadableError
    for _ in range(MAX_PARTS):
        at += len(delimiter)
        line_end = _LINE_END.match(body, at)
        if line_end is None:
            if body.startswith(b"--", at):
                return None
            raise _UnreadableError
        start = line_end.end() - 1
        blank = _BLANK_LINE.search(body, start, start + MAX_PART_HEAD)
        following = body.find(b"\n" + delimiter, blank.end() - 1) if blank is not None else -1
        if blank is None or following < 0:
            raise _UnreadableError
        disposition = _DISPOSITION.search(body, start, blank.end())
        parameters = _parameters(disposition[1]) if disposition is not None else {}
        if parameters.get(b"name") == name and b"filename" not in parameters:
            value = body[blank.end() : following].removesuffix(b"\r")
            return value[:MAX_TEXT].decode("utf-8", "replace")
        at = following + 1
    raise _UnreadableError


def _parameters(text: bytes) -> dict[bytes, bytes]:
    """The parameters of a header, unquoted; their names in lower case."""
    return {
        key.lower(): _QUOTED_PAIR.sub(rb"\1", value[1:-1]) if value.startswith(b'"') else value
        for key, value in _NEXT_PARAMETER.findall(text)
    }
