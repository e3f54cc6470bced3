"""What a request asks for, read as leniently as the Ollama server reads it.

Only the top level of the JSON object is read. The server is written in Go; "as Go reads it" is its package
encoding/json, whose Decoder reads one value and ignores what follows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .json_scanning import EMPTY_LIST, MAX_TEXT, Scanner, Span, UnreadableError, text_of, well_formed, written
from .routes import Kind, Route, last_part

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

_EMPTY_MEANS_LOAD = {"/api/generate": "prompt", "/api/chat": "messages"}
_KEPT_OVER_NULL = ("model", "name", "source", "prompt", "from", "destination")
"""Strings in the server's structs: null leaves them as they are. The other keys' fields are pointers and lists, which
null empties."""


@dataclass(slots=True)
class ParsedRequest:
    """The parts of a request that the balancer needs.

    `model` is as the caller wrote it, None if missing. `readable`: the first JSON value of the body, or the form, could
    be parsed, or the route names no model in its body; see `is_json` for validity. `unloads`: the request does nothing
    but unload the model; `unloads_after`: the model is to be unloaded afterwards. `stream` is None if unspecified.
    """

    model: str | None = None
    readable: bool = True
    unloads: bool = False
    unloads_after: bool = False
    stream: bool | None = None
    members: Mapping[str, Span] = field(default_factory=dict, repr=False, compare=False)
    """Where in the body the values of the object's members are, by key in lower case."""


def read_request(route: Route, path: str, body: bytes | None, content_type: str = "") -> ParsedRequest:
    """Parse a request. `path` has no query. Never raises."""
    if route.is_form:
        return _read_form(body or b"", content_type)
    if route.kind is Kind.MODEL and route.path.endswith("{}"):
        return ParsedRequest(well_formed(last_part(route, path)) or None)
    keys = _MODEL_KEYS.get(route.path, _MODEL if route.kind is Kind.MODEL else ())
    if not keys:
        return ParsedRequest()
    body = body or b""
    try:
        members = _last_members(body)
    except UnreadableError:
        return ParsedRequest(readable=False)
    model = None
    for key in keys:
        if model := text_of(body, members.get(key)):
            break
    stream = _STREAM.get(written(body, members.get("stream"), 5))
    unloads_after = _keeps_no_longer(route, body, members)
    return ParsedRequest(
        model or None,
        unloads=unloads_after and _is_empty(route, body, members),
        unloads_after=unloads_after,
        stream=stream,
        members=members,
    )


def needed_model(route: Route, body: bytes | None, parsed: ParsedRequest) -> str | None:
    """The model that a host has to have to manage it: what is deleted or copied, or another is made from."""
    if route.path == "/api/create":
        return text_of(body or b"", parsed.members.get("from")) or None
    return parsed.model if route.path in ("/api/delete", "/api/copy") else None


def names_model(route: Route) -> bool:
    """Whether a request of that route is about a model."""
    return route.kind is Kind.MODEL or route.path in _MODEL_KEYS


_OTHER_MODELS = {"/api/create": "from", "/api/copy": "destination"}


def other_models(route: Route, body: bytes | None, parsed: ParsedRequest) -> list[str]:
    """The models that the request names besides the one that it is about."""
    key = _OTHER_MODELS.get(route.path)
    name = text_of(body or b"", parsed.members.get(key)) if key else None
    return [name] if name else []


_N = ord("n")
_STREAM = {b"true": True, b"false": False}
_ZERO = re.compile(rb"-?0(?:\.0++)?+(?:[eE][-+]?[0-9]++)?+")
# As Go's time.ParseDuration: a sign, then numbers with units; a bare 0 needs none.
_ZERO_DURATION = re.compile(r"[-+]?(?:0|(?:(?:0++(?:\.0*+)?+|\.0++)(?:ns|us|µs|μs|ms|s|m|h))++)")


def _last_members(body: bytes) -> dict[str, Span]:
    """The members that count, by key in lower case."""
    found: dict[str, Span] = {}
    try:
        for key, start, end in Scanner(body).members():
            # Of the values, only null begins with that letter.
            if body[start] != _N or key not in _KEPT_OVER_NULL:
                found[key] = start, end
    except IndexError:
        raise UnreadableError from None
    return found


def _keeps_no_longer(route: Route, body: bytes, members: dict[str, Span]) -> bool:
    if "keep_alive" not in members or not route.path.startswith("/api/") or not route.runs:
        return False
    keep_alive = written(body, members["keep_alive"], 1_024)
    if keep_alive.startswith(b'"'):
        return _ZERO_DURATION.fullmatch(text_of(keep_alive, (0, len(keep_alive))) or "") is not None
    return _ZERO.fullmatch(keep_alive) is not None


def _is_empty(route: Route, body: bytes, members: dict[str, Span]) -> bool:
    """Whether it is of those that may come without a prompt, and does."""
    content = _EMPTY_MEANS_LOAD.get(route.path)
    if content is None:
        return False
    content_span = members.get(content)
    if content_span is None:
        return True
    if content == "prompt":
        return written(body, content_span, 2) == b'""'
    return written(body, content_span, 4) == b"null" or EMPTY_LIST.fullmatch(body, *content_span) is not None


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


def _read_form(body: bytes, content_type: str) -> ParsedRequest:
    form = _FORM.fullmatch(content_type.encode("utf-8", "replace"))
    boundary = _parameters(form[1]).get(b"boundary") if form is not None else None
    if not boundary:
        return ParsedRequest(readable=False)
    try:
        return ParsedRequest(_form_field(body, boundary, b"model") or None)
    except UnreadableError:
        return ParsedRequest(readable=False)


def _form_field(body: bytes, boundary: bytes, name: bytes) -> str | None:
    """The first field of that name in multipart/form-data; files are none.

    Searching for the boundaries copies nothing. mitmproxy's own `decode_multipart` splits the files into lines, takes
    the name from the head's first line only and fails on a part without an empty line; python-multipart would be one
    more dependency, and email's parser takes quadratic time for a head of semicolons.
    """
    delimiter = b"--" + boundary
    at = 0 if body.startswith(delimiter) else body.find(b"\n" + delimiter) + 1
    if at == 0 and not body.startswith(delimiter):
        raise UnreadableError
    for _ in range(MAX_PARTS):
        at += len(delimiter)
        line_end = _LINE_END.match(body, at)
        if line_end is None:
            if body.startswith(b"--", at):
                return None
            raise UnreadableError
        start = line_end.end() - 1
        blank = _BLANK_LINE.search(body, start, start + MAX_PART_HEAD)
        following = body.find(b"\n" + delimiter, blank.end() - 1) if blank is not None else -1
        if blank is None or following < 0:
            raise UnreadableError
        disposition = _DISPOSITION.search(body, start, blank.end())
        parameters = _parameters(disposition[1]) if disposition is not None else {}
        if parameters.get(b"name") == name and b"filename" not in parameters:
            value = body[blank.end() : following].removesuffix(b"\r")
            return value[:MAX_TEXT].decode("utf-8", "replace")
        at = following + 1
    raise UnreadableError


def _parameters(text: bytes) -> dict[bytes, bytes]:
    """The parameters of a header, unquoted; their names in lower case."""
    return {
        key.lower(): _QUOTED_PAIR.sub(rb"\1", value[1:-1]) if value.startswith(b'"') else value
        for key, value in _NEXT_PARAMETER.findall(text)
    }
