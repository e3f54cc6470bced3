"""What callers send: JSON, read as leniently as the real server reads it."""

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from .answers import Answer, api_error, error_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from .models import ModelKey, SimulatedModel, model_key, requested_key, with_tag

Models = Mapping[ModelKey, SimulatedModel]
Parsed = dict[str, Any]

DECOMPRESSED_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")
"""The routes that read bodies compressed with zstd."""
MAX_DECOMPRESSED = 20 * 1024 * 1024
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
FOREVER = 9.2e9  # what keep_alive -1 becomes: Go's longest duration, 292 years
STRUCTS = {
    "/api/generate": "GenerateRequest",
    "/api/chat": "ChatRequest",
    "/api/embed": "EmbedRequest",
    "/api/embeddings": "EmbeddingRequest",
    "/api/show": "ShowRequest",
    "/api/pull": "PullRequest",
    "/api/push": "PushRequest",
    "/api/create": "CreateRequest",
    "/api/copy": "CopyRequest",
    "/api/delete": "DeleteRequest",
    "/v1/chat/completions": "ChatCompletionRequest",
    "/v1/completions": "CompletionRequest",
    "/v1/embeddings": "EmbedRequest",
    "/v1/responses": "ResponsesRequest",
    "/v1/messages": "MessagesRequest",
}
WANTED: dict[str, type] = {
    "model": str,
    "name": str,
    "from": str,
    "source": str,
    "destination": str,
    "prompt": str,
    "stream": bool,
    "messages": list,
    "tools": list,
    "files": dict,
}
"""The fields whose type is checked, wherever they stand."""
GO_TYPES = {str: "string", bool: "bool", list: "[]api.Message", dict: "map[string]string"}


class RefusedError(Exception):
    """The request gets this answer and nothing else happens."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def sent_body(path: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    """A body as it is read, which some routes unpack. Raises RefusedError."""
    encoding = next((value for name, value in headers if name.lower() == "content-encoding"), "")
    if path not in DECOMPRESSED_ROUTES or encoding != "zstd":
        return body
    try:
        reader = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 23})
        decompressed = reader.decompress(body, MAX_DECOMPRESSED + 1)
    except zstd.ZstdError as error:
        raise RefusedError(api_error(400, str(error), unread=True)) from None
    if len(decompressed) > MAX_DECOMPRESSED:
        raise RefusedError(api_error(400, "http: request body too large", unread=True))
    if not reader.eof:
        raise RefusedError(api_error(400, "unexpected EOF", unread=True))
    return decompressed


def read_object(path: str, body: bytes) -> Parsed:
    """The JSON object of a body, its keys in lower case. Raises RefusedError in the words of the real server."""
    error = error_of(path)

    def refuse(message: str) -> RefusedError:
        return RefusedError(error(400, message, unread=True))

    text = body.decode(errors="replace").lstrip(" \t\r\n")
    if not text:
        raise refuse("missing request body" if error is api_error else "EOF")
    try:
        value, _ = DECODER.raw_decode(text)
    except json.JSONDecodeError as mistake:
        raise refuse(_syntax_error(text, mistake)) from None
    except RecursionError:
        raise refuse("exceeded max depth") from None
    except ValueError as mistake:
        raise refuse(str(mistake)) from None
    struct = STRUCTS[path]
    if not isinstance(value, dict):
        raise refuse(f"json: cannot unmarshal {_kind(value)} into Go value of type api.{struct}")
    for field, kind in WANTED.items():
        found = value.get(field)
        if found is not None and not isinstance(found, kind):
            go = GO_TYPES[kind]
            raise refuse(f"json: cannot unmarshal {_kind(found)} into Go struct field {struct}.{field} of type {go}")
    return value


def as_sent(value: object) -> object:
    """A value with all its keys as they came."""
    match value:
        case FoldedDict():
            return {key: as_sent(each) for key, each in value.as_sent.items()}
        case list():
            return [as_sent(each) for each in value]
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"invalid character {name.lstrip('-')[0]!r} looking for beginning of value")


class FoldedDict(dict[str, Any]):
    """An object whose keys are in lower case; `as_sent` has them as they came, for what isn't a field but data."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__((key.lower(), value) for key, value in pairs)
        self.as_sent = dict(pairs)


DECODER = json.JSONDecoder(object_pairs_hook=FoldedDict, parse_constant=_no_constant)


def _syntax_error(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :].lstrip()
    if not rest or error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    where = "looking for beginning of " + ("object key string" if "property name" in error.msg else "value")
    return f"invalid character {rest[0]!r} {where}"


def _kind(value: object) -> str:
    return {str: "string", bool: "bool", list: "array", dict: "object"}.get(type(value), "number")


def named_model(parsed: Parsed, *fields: str) -> str | None:
    """The model a request names in `model`, or else in one of `fields`, in the caller's spelling."""
    found = [name for name in (parsed.get(field) for field in ("model", *fields)) if isinstance(name, str)]
    return next(filter(None, found), found[0] if found else None)


def managed_name(parsed: Parsed) -> str:
    """The model that a request other than for inference means. Raises RefusedError."""
    spelling = named_model(parsed, "name")
    if not spelling:
        raise RefusedError(api_error(400, "model is required"))
    if model_key(spelling) is None:
        raise RefusedError(api_error(400, "invalid model name"))
    return spelling


def shown_model(parsed: Parsed, models: Models) -> SimulatedModel:
    """The model a show request means. Raises RefusedError."""
    spelling = managed_name(parsed)
    key = requested_key(spelling)
    if key is None or key not in models:
        raise RefusedError(api_error(404, f"model '{with_tag(spelling)}' not found"))
    return models[key]


def keep_alive(value: object) -> float | None:
    """Seconds from a number of them or a Go duration (`10m`); negative: for ever; None: not given or not understood."""
    seconds: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(max(-1, min(value, FOREVER)))
    elif isinstance(value, str):
        digits = value.removeprefix("-")
        parts = DURATION.findall(digits)
        if parts and "".join(number + unit for number, unit in parts) == digits:
            seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
        elif digits.replace(".", "", 1).isdecimal():
            seconds = float(digits)
        if seconds is not None and value.startswith("-"):
            seconds = -seconds
    if seconds is None:
        return None
    return FOREVER if seconds < 0 else min(seconds, FOREVER)
