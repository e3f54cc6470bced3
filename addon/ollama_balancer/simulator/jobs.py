"""Parses inference requests of each endpoint into jobs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from . import native, openai
from .answers import Answer, ErrorShape, Headers, api_error, messages_error, v1_error
from .anthropic import MessagesShape
from .models import SimulatedModel, requested_key
from .openai import ChatShape, CompletionShape
from .requests import FoldedDict, Models, Parsed, RefusedError, keep_alive, named_model
from .responses import ResponsesShape
from .shapes import SSE_HEADERS, EmbeddingResult, Shape, ToolCall
from .text import prompt_tokens

ARGUMENTS: dict[str, Any] = {"string": "Paris", "integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}
"""What a tool is called with, by the type of each parameter."""


@dataclass(frozen=True)
class TextEndpoint:
    """How one endpoint is asked for text, and how it writes it."""

    prompt: Callable[[Parsed], str]
    empty: Callable[[Parsed], bool]
    """No prompt: the request only loads or unloads."""
    limit: Callable[[Parsed], object]
    shape: Callable[[str, Parsed, str], Shape]
    """Of the model's spelling, the request and its prompt."""
    error: ErrorShape = v1_error
    ability: str = "chat"
    streams: bool = False
    """Whether it streams where the request doesn't say."""
    native: bool = False
    """Whether the request says how long the model stays loaded."""
    missing: Callable[[Parsed], str | None] = lambda _: None
    """What is wrong with a request that lacks something."""
    stream_headers: Headers = ()


@dataclass(frozen=True)
class TextJob:
    """Text to generate. Without a prompt the model is loaded, or unloaded where `keep_alive` (seconds) is 0."""

    endpoint: TextEndpoint
    model: SimulatedModel
    shape: Shape
    prompt: str
    empty: bool
    stream: bool
    limit: int | None
    keep_alive: float | None
    call: ToolCall | None
    """What the model answers with instead of text."""

    @property
    def stream_headers(self) -> Headers:
        """What is sent with a stream beside its type, and with an error in its place."""
        return self.endpoint.stream_headers if self.stream else ()

    def error(self, status: int, message: str) -> Answer:
        return replace(self.endpoint.error(status, message), headers=self.stream_headers)


@dataclass(frozen=True)
class EmbedEndpoint:
    """How one endpoint is asked for embeddings, and how it writes them."""

    field: str
    shape: Callable[[Parsed], Callable[[EmbeddingResult], Answer]]
    error: ErrorShape
    required: bool = False
    """Whether nothing to embed is an error."""


@dataclass(frozen=True)
class EmbedJob:
    """Texts to embed."""

    endpoint: EmbedEndpoint
    model: SimulatedModel
    spelling: str
    inputs: list[str]
    keep_alive: float | None
    write: Callable[[EmbeddingResult], Answer]

    def error(self, status: int, message: str) -> Answer:
        return self.endpoint.error(status, message)


def text_job(endpoint: TextEndpoint, parsed: Parsed, models: Models) -> TextJob:
    """What a request for text wants. Raises RefusedError."""
    value = parsed.get("stream")
    stream = endpoint.streams if value is None else bool(value)

    def refuse(status: int, message: str, *, unread: bool = False) -> RefusedError:
        headers = endpoint.stream_headers if stream and not unread else ()
        return RefusedError(replace(endpoint.error(status, message, unread=unread), headers=headers))

    if (missing := endpoint.missing(parsed)) is not None:
        raise refuse(400, missing, unread=True)
    spelling = named_model(parsed) or ""
    key = requested_key(spelling)
    if key is None and endpoint.ability == "chat":
        raise refuse(400, "model is required")
    if key is None and spelling:
        raise refuse(400, "invalid model name")
    if key is None or key not in models:
        raise refuse(404, f"model '{spelling}' not found")
    model = models[key]
    if model.embedding:
        raise refuse(400, f'"{spelling}" does not support {endpoint.ability}')
    tools = [tool for tool in parsed.get("tools") or [] if isinstance(tool, FoldedDict)]
    if endpoint.ability == "chat" and tools and not model.supports_tools:
        raise refuse(400, f'"{spelling}" does not support tools')
    limit = endpoint.limit(parsed)
    prompt = endpoint.prompt(parsed)
    return TextJob(
        endpoint=endpoint,
        model=model,
        shape=endpoint.shape(spelling, parsed, prompt),
        prompt=prompt,
        empty=endpoint.empty(parsed),
        stream=stream,
        limit=limit if isinstance(limit, int) and limit > 0 else None,
        keep_alive=keep_alive(parsed.get("keep_alive")) if endpoint.native else None,
        call=tool_call(tools[0]) if endpoint.ability == "chat" and tools and model.tool else None,
    )


def embed_job(endpoint: EmbedEndpoint, parsed: Parsed, models: Models) -> EmbedJob:
    """What a request for embeddings wants. Raises RefusedError."""
    inputs = parsed.get(endpoint.field)
    if endpoint.required and not inputs:
        raise RefusedError(endpoint.error(400, "invalid input", unread=True))
    spelling = named_model(parsed) or ""
    key = requested_key(spelling)
    if key is None or key not in models:
        raise RefusedError(endpoint.error(404, f'model "{spelling}" not found, try pulling it first'))
    if isinstance(inputs, str):
        inputs = [inputs] if inputs or endpoint.field == "input" else []
    if inputs is not None and not (isinstance(inputs, list) and all(isinstance(text, str) for text in inputs)):
        raise RefusedError(endpoint.error(400, "invalid input type"))
    if not models[key].embedding:
        message = "This server does not support embeddings. Start it with `--embeddings`"
        raise RefusedError(endpoint.error(501, message))
    return EmbedJob(
        endpoint=endpoint,
        model=models[key],
        spelling=spelling,
        inputs=inputs or [],
        keep_alive=keep_alive(parsed.get("keep_alive")),
        write=endpoint.shape(parsed),
    )


def tool_call(tool: FoldedDict) -> ToolCall:
    """A call of a tool, however the protocol describes it: with a value for each of its parameters."""
    function = tool.get("function")
    definition = function if isinstance(function, dict) else tool
    schema = definition.get("parameters") or definition.get("input_schema")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    values = properties.as_sent if isinstance(properties, FoldedDict) else {}
    return ToolCall(str(definition.get("name") or ""), {name: _argument(each) for name, each in values.items()})


def _argument(schema: object) -> object:
    if not isinstance(schema, dict):
        return ARGUMENTS["string"]
    choices, kind = schema.get("enum"), schema.get("type")
    if isinstance(choices, list) and choices:
        return choices[0]
    return ARGUMENTS.get(kind, ARGUMENTS["string"]) if isinstance(kind, str) else ARGUMENTS["string"]


# ---- the parts of a request


def _text(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _messages(messages: object) -> list[str]:
    if not isinstance(messages, list):
        return []
    return [_text(message.get("content") if isinstance(message, dict) else None) for message in messages]


def _chat_prompt(parsed: Parsed) -> str:
    return "\n".join(_messages(parsed.get("messages")))


def _generate_prompt(parsed: Parsed) -> str:
    return f"{_text(parsed.get('system'))}{_text(parsed.get('prompt'))}"


def _messages_prompt(parsed: Parsed) -> str:
    system = _text(parsed.get("system"))
    return "\n".join([*filter(None, [system]), *_messages(parsed.get("messages"))])


def _responses_prompt(parsed: Parsed) -> str:
    value = parsed.get("input")
    texts = [value] if isinstance(value, str) else _messages(value)
    return "\n".join([*filter(None, [_text(parsed.get("instructions"))]), *texts])


def _option(parsed: Parsed, name: str) -> object:
    options = parsed.get("options")
    return options.get(name) if isinstance(options, dict) else None


def _includes_usage(parsed: Parsed) -> bool:
    options = parsed.get("stream_options")
    return bool(isinstance(options, dict) and options.get("include_usage"))


def _chat_lacks(parsed: Parsed) -> str | None:
    return None if parsed.get("messages") else "[] is too short - 'messages'"


def _messages_lacks(parsed: Parsed) -> str | None:
    if not parsed.get("model"):
        return "model is required"
    limit = parsed.get("max_tokens")
    if not isinstance(limit, int) or limit <= 0:
        return "max_tokens is required and must be positive"
    return None if parsed.get("messages") else "messages is required"


# ---- the endpoints

_OLLAMA = partial(
    TextEndpoint,
    limit=lambda parsed: _option(parsed, "num_predict"),
    error=api_error,
    streams=True,
    native=True,
)

TEXT = {
    "/api/generate": _OLLAMA(
        prompt=_generate_prompt,
        empty=lambda parsed: not any(parsed.get(field) for field in ("prompt", "images", "suffix")),
        shape=lambda spelling, _, __: native.OllamaShape(spelling, chat=False),
        ability="generate",
    ),
    "/api/chat": _OLLAMA(
        prompt=_chat_prompt,
        empty=lambda parsed: not parsed.get("messages"),
        shape=lambda spelling, _, __: native.OllamaShape(spelling, chat=True),
    ),
    "/v1/chat/completions": TextEndpoint(
        prompt=_chat_prompt,
        empty=lambda _: False,
        limit=lambda parsed: parsed.get("max_tokens", parsed.get("max_completion_tokens")),
        shape=lambda spelling, parsed, _: ChatShape(spelling, _includes_usage(parsed)),
        missing=_chat_lacks,
    ),
    "/v1/completions": TextEndpoint(
        prompt=_generate_prompt,
        empty=lambda parsed: not (parsed.get("prompt") or parsed.get("suffix")),
        limit=lambda parsed: parsed.get("max_tokens"),
        shape=lambda spelling, parsed, _: CompletionShape(spelling, _includes_usage(parsed)),
        ability="generate",
    ),
    "/v1/responses": TextEndpoint(
        prompt=_responses_prompt,
        empty=lambda parsed: not parsed.get("input"),
        limit=lambda parsed: parsed.get("max_output_tokens"),
        shape=lambda spelling, parsed, _: ResponsesShape(spelling, parsed),
        stream_headers=SSE_HEADERS,
    ),
    "/v1/messages": TextEndpoint(
        prompt=_messages_prompt,
        empty=lambda _: False,
        limit=lambda parsed: parsed.get("max_tokens"),
        shape=lambda spelling, _, prompt: MessagesShape(spelling, prompt_tokens(prompt)),
        error=messages_error,
        missing=_messages_lacks,
        stream_headers=SSE_HEADERS,
    ),
}
EMBED = {
    "/api/embed": EmbedEndpoint("input", lambda _: native.embed, api_error),
    "/api/embeddings": EmbedEndpoint("prompt", lambda _: native.embedding, api_error),
    "/v1/embeddings": EmbedEndpoint(
        "input",
        lambda parsed: partial(openai.embeddings, encoded=parsed.get("encoding_format") == "base64"),
        v1_error,
        required=True,
    ),
}
JOBS: dict[str, Callable[[Parsed, Models], TextJob | EmbedJob]] = {
    **{path: partial(text_job, endpoint) for path, endpoint in TEXT.items()},
    **{path: partial(embed_job, endpoint) for path, endpoint in EMBED.items()},
}
"""What reads the body of each inference request."""
