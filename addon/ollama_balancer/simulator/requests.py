"""What callers send: JSON read as leniently as the real server reads it, and made into an inference job."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .answers import Answer, CompletionShape, OllamaShape, Shape, api_error, v1_error
from .models import ModelKey, SimulatedModel, model_key, with_tag

Models = Mapping[ModelKey, SimulatedModel]
Parsed = dict[str, Any]

UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
FOREVER = 9.2e9  # what keep_alive -1 becomes: Go's longest duration, 292 years
STRUCTS = {
    "/api/generate": "GenerateRequest",
    "/api/chat": "ChatRequest",
    "/api/embed": "EmbedRequest",
    "/api/show": "ShowRequest",
    "/v1/chat/completions": "ChatCompletionRequest",
}


class RefusedError(Exception):
    """The request gets this answer and nothing else happens."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


@dataclass(frozen=True)
class TextJob:
    """Text to generate. Without a prompt the model is loaded, or unloaded where `keep_alive` (seconds) is 0."""

    model: SimulatedModel
    shape: Shape
    prompt: str
    empty: bool
    stream: bool
    limit: int | None
    keep_alive: float | None


@dataclass(frozen=True)
class EmbedJob:
    """Texts to embed."""

    model: SimulatedModel
    spelling: str
    inputs: list[str]
    keep_alive: float | None


def read_object(path: str, body: bytes) -> Parsed:
    """The JSON object of a body, its keys in lower case. Raises RefusedError in the words of the real server."""
    v1 = path.startswith("/v1/")

    def refuse(message: str) -> RefusedError:
        return RefusedError(v1_error(400, message, unread=True) if v1 else api_error(400, message))

    text = body.decode(errors="replace").lstrip(" \t\r\n")
    if not text:
        raise refuse("EOF" if v1 else "missing request body")
    try:
        value, _ = DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        raise refuse(_syntax_error(text, error)) from None
    except RecursionError:
        raise refuse("exceeded max depth") from None
    except ValueError as error:
        raise refuse(str(error)) from None
    struct = STRUCTS[path]
    if not isinstance(value, dict):
        raise refuse(f"json: cannot unmarshal {_kind(value)} into Go value of type api.{struct}")
    wanted: dict[str, type] = {"model": str, "name": str, "prompt": str, "stream": bool, "messages": list}
    for field, kind in wanted.items():
        found = value.get(field)
        if found is not None and not isinstance(found, kind):
            go = {str: "string", bool: "bool", list: "[]api.Message"}[kind]
            raise refuse(f"json: cannot unmarshal {_kind(found)} into Go struct field {struct}.{field} of type {go}")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"invalid character {name.lstrip('-')[0]!r} looking for beginning of value")


def _lower_keys(pairs: list[tuple[str, Any]]) -> Parsed:
    return {key.lower(): value for key, value in pairs}


DECODER = json.JSONDecoder(object_pairs_hook=_lower_keys, parse_constant=_no_constant)


def _syntax_error(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :].lstrip()
    if not rest or error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    where = "looking for beginning of " + ("object key string" if "property name" in error.msg else "value")
    return f"invalid character {rest[0]!r} {where}"


def _kind(value: object) -> str:
    return {str: "string", bool: "bool", list: "array", dict: "object"}.get(type(value), "number")


def named_model(parsed: Parsed) -> str | None:
    """The model a request names, in the caller's spelling."""
    name = parsed.get("model")
    return name if isinstance(name, str) else None


def shown_model(parsed: Parsed, models: Models) -> SimulatedModel:
    """The model a show request means. Raises RefusedError."""
    spelling = parsed.get("model") or parsed.get("name") or ""
    if not spelling:
        raise RefusedError(api_error(400, "model is required"))
    key = model_key(spelling)
    if key is None:
        raise RefusedError(api_error(400, "invalid model name"))
    if key not in models:
        raise RefusedError(api_error(404, f"model '{with_tag(spelling)}' not found"))
    return models[key]


def text_job(path: str, parsed: Parsed, models: Models) -> TextJob:
    """What a generate, chat or chat completion request wants. Raises RefusedError."""
    v1, chat = path.startswith("/v1/"), path != "/api/generate"
    spelling = named_model(parsed) or ""
    error = v1_error if v1 else api_error
    messages = parsed.get("messages") or []
    if v1 and not messages:
        raise RefusedError(v1_error(400, "[] is too short - 'messages'", unread=True))
    key = model_key(spelling)
    if key is None and chat:
        raise RefusedError(error(400, "model is required"))
    if key is None and spelling:
        raise RefusedError(error(400, "invalid model name"))
    if key is None or key not in models:
        raise RefusedError(error(404, f"model '{spelling}' not found"))
    model = models[key]
    if model.embedding:
        raise RefusedError(error(400, f'"{spelling}" does not support {"chat" if chat else "generate"}'))
    stream = parsed.get("stream")
    limit = parsed.get("max_tokens", parsed.get("max_completion_tokens")) if v1 else _option(parsed, "num_predict")
    shape: Shape
    if v1:
        options = parsed.get("stream_options")
        shape = CompletionShape(spelling, bool(isinstance(options, dict) and options.get("include_usage")))
    else:
        shape = OllamaShape(spelling, chat=chat)
    prompt = (
        "\n".join(map(_message_text, messages)) if chat else f"{parsed.get('system') or ''}{parsed.get('prompt') or ''}"
    )
    return TextJob(
        model=model,
        shape=shape,
        prompt=prompt,
        empty=not messages if chat else not (parsed.get("prompt") or parsed.get("images") or parsed.get("suffix")),
        stream=bool(stream) if v1 else stream is not False,
        limit=limit if isinstance(limit, int) and limit > 0 else None,
        keep_alive=None if v1 else keep_alive(parsed.get("keep_alive")),
    )


def embed_job(path: str, parsed: Parsed, models: Models) -> EmbedJob:
    """What an embed request wants. Raises RefusedError."""
    spelling = named_model(parsed) or ""
    key = model_key(spelling)
    if key is None or key not in models:
        raise RefusedError(api_error(404, f'model "{spelling}" not found, try pulling it first'))
    inputs = parsed.get("input")
    if isinstance(inputs, str):
        inputs = [inputs]
    if inputs is not None and not (isinstance(inputs, list) and all(isinstance(text, str) for text in inputs)):
        raise RefusedError(api_error(400, "invalid input type"))
    if not models[key].embedding:
        message = "This server does not support embeddings. Start it with `--embeddings`"
        raise RefusedError(api_error(501, message))
    return EmbedJob(models[key], spelling, inputs or [], keep_alive(parsed.get("keep_alive")))


JOBS: dict[str, Callable[[str, Parsed, Models], TextJob | EmbedJob]] = {
    "/api/generate": text_job,
    "/api/chat": text_job,
    "/api/embed": embed_job,
    "/v1/chat/completions": text_job,
}


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


def _option(parsed: Parsed, name: str) -> object:
    options = parsed.get("options")
    return options.get(name) if isinstance(options, dict) else None


def _message_text(message: object) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
