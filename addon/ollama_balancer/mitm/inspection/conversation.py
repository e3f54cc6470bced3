"""Parses a request for display: settings and conversation.

Supports /api/generate and chat, embeddings, OpenAI's chat completions, completions and responses, and Anthropic's
messages. Values of unexpected types are shown as JSON.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pydantic_core import from_json, to_json

MAX_SHOWN_TEXT = 20_000
"""Characters shown of one text."""

MAX_TURNS = 20_000
"""Of a conversation, and parts of a message."""

_SETTINGS = (
    "model",
    "stream",
    "options",
    "format",
    "response_format",
    "keep_alive",
    "think",
    "reasoning_effort",
    "reasoning",
    "thinking",
    "temperature",
    "top_p",
    "seed",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "stop",
    "raw",
    "truncate",
    "dimensions",
    "tool_choice",
)
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{1000,}+={0,2}")
"""The lookbehind keeps it linear in runs that are nearly long enough."""

_TEXTS = frozenset(("text", "input_text", "output_text", "summary_text", "reasoning_text"))
_IMAGES = frozenset(("image", "image_url", "input_image"))


@dataclass(frozen=True)
class Turn:
    """What one side says. `who` is a role, or what else it is."""

    who: str
    text: str


@dataclass
class Prompt:
    settings: list[tuple[str, str]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)


def read_prompt(body: bytes) -> Prompt | None:
    """The request; None where the body is no JSON object."""
    try:
        value = from_json(body)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    prompt = Prompt([(key, display(value[key], 500)) for key in _SETTINGS if value.get(key) is not None])
    if tools := [_name(tool) for tool in _list(value.get("tools"))]:
        prompt.settings.append(("tools", ", ".join(tools)))
    prompt.turns = list(islice(_turns(value), MAX_TURNS))
    return prompt


def _turns(value: dict[str, Any]) -> Iterator[Turn]:
    for key, who in (("system", "system"), ("instructions", "system"), ("template", "template"), ("prompt", "user")):
        if value.get(key):
            yield Turn(who, text_of(value[key]))
    if value.get("suffix"):
        yield Turn("suffix", text_of(value["suffix"]))
    if images := [_image(image) for image in _list(value.get("images"))]:
        yield Turn("images", "\n".join(images))
    if isinstance(value.get("context"), list):
        yield Turn("context", f"[{len(value['context'])} tokens of an earlier conversation]")
    for message in _list(value.get("messages")):
        yield from _message(message)
    input_value = value.get("input")
    if isinstance(input_value, list) and any(isinstance(item, dict) for item in input_value):
        for item in input_value:
            yield from _message(item)
    elif input_value is not None:
        texts = input_value if isinstance(input_value, list) else [input_value]
        yield from (Turn("input", text_of(text)) for text in texts)


def _message(message: object) -> Iterator[Turn]:
    """A message, or an item of /v1/responses."""
    if not isinstance(message, dict):
        yield Turn("message", display(message))
        return
    match message.get("type"):
        case "function_call":
            yield Turn("assistant calls", _call(message))
            return
        case "function_call_output":
            yield Turn("tool", text_of(message.get("output")))
            return
        case "reasoning":
            yield Turn("assistant thinks", text_of(message.get("summary") or message.get("content")))
            return
    who = display(message.get("role", "message"), 40)
    name = message.get("tool_name") or message.get("name")
    if isinstance(name, str):
        who += f" ({display(name, 80)})"
    for key in ("thinking", "reasoning"):
        if message.get(key):
            yield Turn(f"{who} thinks", text_of(message[key]))
    texts = [text_of(message.get("content"))] if message.get("content") else []
    texts += [_image(image) for image in _list(message.get("images"))]
    calls = _list(message.get("tool_calls"))
    if texts or not calls:
        yield Turn(who, "\n".join(texts))
    for call in calls:
        yield Turn(f"{who} calls", _call(call))


def text_of(content: object) -> str:
    """A message's content: a text, or a list of parts."""
    if isinstance(content, list):
        return _cut("\n".join(_part(part) for part in content[:MAX_TURNS]))
    return display(content)


def _part(part: object) -> str:
    if not isinstance(part, dict):
        return display(part)
    kind = part.get("type")
    if not isinstance(kind, str):
        return display(part)
    if kind in _TEXTS:
        return display(part.get("text"))
    if kind in _IMAGES:
        source = part.get("source")
        return _image(source.get("data") if isinstance(source, dict) else part.get("image_url"))
    if kind == "thinking":
        return f"(thinks) {display(part.get('thinking'))}"
    if kind == "tool_use":
        return f"calls {_call(part)}"
    if kind == "tool_result":
        return f"(result) {text_of(part.get('content'))}"
    return display(part)


def _call(call: object) -> str:
    if not isinstance(call, dict):
        return display(call)
    function = call.get("function")
    fields = function if isinstance(function, dict) else call
    arguments = fields.get("arguments", fields.get("input"))
    return f"{display(fields.get('name'), 200)} {display(arguments, 4_000)}"


def _image(image: object) -> str:
    """Its size, not its bytes."""
    if isinstance(image, dict):
        image = image.get("url")
    if not isinstance(image, str):
        return "[image]"
    if image.startswith(("http://", "https://")):
        return f"[image at {_cut(image, 200)}]"
    return f"[image, {_size(image.rpartition(',')[2])}]"


def _name(tool: object) -> str:
    """Of a tool as OpenAI and Ollama, or as Anthropic and /v1/responses describe it."""
    if not isinstance(tool, dict):
        return display(tool, 80)
    function = tool.get("function")
    return display((function if isinstance(function, dict) else tool).get("name"), 80)


def display(value: object, limit: int = MAX_SHOWN_TEXT) -> str:
    """A text as it is, anything else as JSON."""
    if value is None:
        return ""
    if not isinstance(value, str):
        value = without_base64(to_json(value, inf_nan_mode="constants").decode())
    return _cut(value, limit)


def without_base64(text: str) -> str:
    """JSON with the sizes of the files in it."""
    return _BASE64.sub(lambda found: f"[{_size(found[0])} of base64]", text)


def _size(base64: str) -> str:
    return f"{len(base64) * 3 // 4 / 1000:,.0f} kB"


def _cut(text: str, limit: int = MAX_SHOWN_TEXT) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def _list(value: object) -> list[Any]:
    return value[:MAX_TURNS] if isinstance(value, list) else []
