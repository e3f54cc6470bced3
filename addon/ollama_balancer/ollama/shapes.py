"""Reads an event or a complete answer of Ollama's APIs: text, thinking, tool calls, end, errors and timings.

The shapes are those of /api/generate and chat, /api/pull, push and create, /v1/chat/completions and completions,
/v1/messages and /v1/responses, as Ollama 0.33 sends them. Values of other types count as missing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

MAX_TOOL_CALLS = 1_000
"""Tool calls kept per answer."""

MAX_ERROR = 500
"""Characters of an error message."""

_MAX_FIGURE = 2**53
_FIGURES = (
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
    "load_duration",
    "total_duration",
)


class Timings(NamedTuple):
    """Token counts, and durations in seconds, which only Ollama's own API and llama.cpp's server report."""

    prompt_eval_count: int | None = None
    prompt_eval_duration: float | None = None
    eval_count: int | None = None
    eval_duration: float | None = None
    load_duration: float | None = None
    total_duration: float | None = None
    cached_tokens: int | None = None
    """Of the prompt, those that did not have to be read; only llama.cpp's server tells."""


MIN_TOKENS = 10
"""Fewer tokens do not show a speed: the first one counts as prefill, so a single token takes a microsecond."""


def speed_of(tokens: float | None, seconds: float | None) -> float | None:
    """Tokens per second; None if unknown or if there are too few tokens."""
    return tokens / seconds if tokens and seconds and tokens >= MIN_TOKENS and seconds > 0 else None


class CallPart(NamedTuple):
    """A tool call or a fragment of one."""

    number: int | None
    """The same for all fragments of a call; None: this is a complete call."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    begins: bool = False
    """Whether a new call starts, even if the number was used before."""

    replaces: bool = False
    """Whether `arguments` replaces what came before."""


class Context(NamedTuple):
    """The `context` of /api/generate: the number of token ids, and the first and last of them."""

    tokens: int
    ends: tuple[bytes, ...]


CONTEXT_ENDS = 32
"""Token ids at each end of a context that identify it."""


class Event(NamedTuple):
    """One event of a stream, or a complete answer that is not a stream."""

    text: str = ""
    thinking: str = ""
    calls: tuple[CallPart, ...] = ()
    terminal: bool = False
    error: str | None = None
    timings: Timings | None = None
    too_large: bool = False
    """Whether it was skipped because of its size."""
    context: Context | None = None


def _text(text: str, new: Callable[[type[Event], tuple[object, ...]], Event] = tuple.__new__) -> Event:
    """`Event(text)` in half the time, as most events have only text."""
    return new(Event, (text, "", (), False, None, None, False, None))


NOTHING = Event()
TERMINAL = Event(terminal=True)
TOO_LARGE = Event(too_large=True)


def read_event(value: dict[str, Any]) -> Event:
    """Read one event of a stream from its JSON object."""
    choices = value.get("choices")
    if choices is not None:
        return _openai(value, choices, "delta")
    kind = value.get("type")
    if isinstance(kind, str):
        return _typed(value, kind)
    error = value.get("error")
    if error:
        return Event(error=message_of(error))
    return _ollama(value, value.get("done") is True or value.get("status") == "success")


def read_answer(value: dict[str, Any]) -> Event:
    """Read a complete answer, which is not a stream, from its JSON object."""
    error = value.get("error")
    if error:
        return Event(error=message_of(error))
    choices = value.get("choices")
    if choices is not None:
        return _openai(value, choices, "message")._replace(terminal=True)
    usage = value.get("usage")
    content, output = value.get("content"), value.get("output")
    if isinstance(content, list):
        return _of_parts(content, _usage(usage, "input_tokens", "output_tokens"))
    if isinstance(output, list):
        return _of_parts(_parts_of(output), _usage(usage, "input_tokens", "output_tokens"))
    event = _ollama(value, True)
    return event._replace(timings=_usage(usage, "prompt_tokens", "completion_tokens")) if usage else event


def context_of(numbers: object) -> Context | None:
    if not isinstance(numbers, list) or not numbers:
        return None
    ends = numbers[:CONTEXT_ENDS] + numbers[-CONTEXT_ENDS:]
    return Context(len(numbers), tuple(str(number)[:20].encode() for number in ends if isinstance(number, int)))


def message_of(error: object) -> str:
    """The message of an error, which is a string or an object that has one; at most `MAX_ERROR` characters."""
    if isinstance(error, dict):
        message = error.get("message")
        error = message if message and isinstance(message, str) else _json(error)
    return error[:MAX_ERROR] if isinstance(error, str) else _json(error)[:MAX_ERROR]


def _ollama(value: dict[str, Any], terminal: bool) -> Event:
    """Read /api/generate, chat, pull, push and create; other answers do not have these keys."""
    message = value.get("message")
    calls = None
    if isinstance(message, dict):
        text = message.get("content")
        thinking = message.get("thinking")
        calls = message.get("tool_calls")
    else:
        text = value.get("response")
        thinking = value.get("thinking")
    if isinstance(text, str) and not (thinking or calls or terminal):
        return _text(text)
    parts = []
    if calls:
        for call in _list(calls)[:MAX_TOOL_CALLS]:
            function = _dict(_dict(call).get("function"))
            arguments = _arguments(function.get("arguments"))
            parts.append(CallPart(None, _str(_dict(call).get("id")), _str(function.get("name")), arguments))
    if not terminal:
        return Event(_str(text), _str(thinking), tuple(parts))
    context = context_of(value.get("context"))
    return Event(_str(text), _str(thinking), tuple(parts), True, None, _timings(value), context=context)


def _openai(value: dict[str, Any], choices: object, key: str) -> Event:
    """/v1/chat/completions and /v1/completions. The chunk with the usage has no choices."""
    text = thinking = calls = None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, dict):
        delta = choice.get(key)
        if isinstance(delta, dict):
            text = delta.get("content")
            if text is None or len(delta) > 1:
                thinking = delta.get("reasoning")
                calls = delta.get("tool_calls")
        else:
            text = choice.get("text")
    if isinstance(text, str) and not thinking and not calls and "usage" not in value and "error" not in value:
        return _text(text)
    error = value.get("error")
    parts = []
    for call in _list(calls)[:MAX_TOOL_CALLS]:
        call = _dict(call)
        function = _dict(call.get("function"))
        index = None if key == "message" else _index(call.get("index"))
        arguments = _arguments(function.get("arguments"))
        parts.append(CallPart(index, _str(call.get("id")), _str(function.get("name")), arguments))
    timings = _llama_timings(value.get("timings"), _usage(value.get("usage"), "prompt_tokens", "completion_tokens"))
    return Event(_str(text), _str(thinking), tuple(parts), False, message_of(error) if error else None, timings)


def _typed(value: dict[str, Any], kind: str) -> Event:
    """Read /v1/messages and /v1/responses, whose events have a type."""
    match kind:
        case "content_block_delta":
            delta = _dict(value.get("delta"))
            text = delta.get("text")
            if text and isinstance(text, str):
                return _text(text)
            if delta.get("type") == "input_json_delta":
                return _call(value.get("index"), arguments=_str(delta.get("partial_json")))
            return Event("", _str(delta.get("thinking")))
        case "response.output_text.delta":
            return _text(_str(value.get("delta")))
        case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
            return Event("", _str(value.get("delta")))
        case "content_block_start":
            block = _dict(value.get("content_block"))
            if block.get("type") == "tool_use":
                part = _tool_use(block, _index(value.get("index")))
                if not block.get("input"):
                    part = part._replace(arguments="")  # an empty placeholder for the fragments that follow
                return Event("", "", (part._replace(begins=True),))
            return Event(_str(block.get("text")), _str(block.get("thinking")))
        case "message_delta":
            return Event(timings=_usage(value.get("usage"), "input_tokens", "output_tokens"))
        case "message_stop":
            return TERMINAL
        case "response.output_item.added" | "response.output_item.done":
            item = _dict(value.get("item"))
            if item.get("type") != "function_call":
                return NOTHING
            whole = kind == "response.output_item.done"
            part = _function_call(item, _index(value.get("output_index")))
            return Event("", "", (part._replace(begins=not whole, replaces=whole),))
        case "response.function_call_arguments.delta":
            return _call(value.get("output_index"), arguments=_str(value.get("delta")))
        case "response.completed" | "response.incomplete":
            usage = _dict(value.get("response")).get("usage")
            return Event(terminal=True, timings=_usage(usage, "input_tokens", "output_tokens"))
        case "response.failed":
            error = _dict(value.get("response")).get("error")
            return Event(error=message_of(error or "the response failed"))
        case "error":
            return Event(error=message_of(value.get("error") or value))
        case _:
            error = value.get("error")
            return Event(error=message_of(error)) if error else NOTHING


def _parts_of(output: list[Any]) -> list[Any]:
    """The parts of the messages of a /v1/responses answer, its reasoning and its function calls, in order."""
    parts = []
    for item in map(_dict, output):
        if item.get("type") == "function_call":
            parts.append(item)
        else:
            parts += _list(item.get("summary")) + _list(item.get("content"))
    return parts


def _of_parts(parts: list[Any], timings: Timings | None) -> Event:
    text, thinking, calls = [], [], []
    for part in map(_dict, parts):
        match part.get("type"):
            case "text" | "output_text":
                text.append(_str(part.get("text")))
            case "thinking":
                thinking.append(_str(part.get("thinking")))
            case "summary_text" | "reasoning_text":
                thinking.append(_str(part.get("text")))
            case "tool_use":
                calls.append(_tool_use(part, None))
            case "function_call":
                calls.append(_function_call(part, None))
    return Event("".join(text), "".join(thinking), tuple(calls[:MAX_TOOL_CALLS]), True, None, timings)


def _call(index: object, arguments: str) -> Event:
    return Event("", "", (CallPart(_index(index), "", "", arguments),))


def _tool_use(block: dict[str, Any], index: int | None) -> CallPart:
    return CallPart(index, _str(block.get("id")), _str(block.get("name")), _arguments(block.get("input")))


def _function_call(item: dict[str, Any], index: int | None) -> CallPart:
    return CallPart(index, _str(item.get("call_id")), _str(item.get("name")), _arguments(item.get("arguments")))


def _timings(value: dict[str, Any]) -> Timings:
    figures: list[int | None] = []
    for key in _FIGURES:
        figure = value.get(key)
        figures.append(figure if type(figure) is int and 0 <= figure < _MAX_FIGURE else None)
    prompt, prompt_ns, output, output_ns, load_ns, total_ns = figures
    return Timings(
        prompt,
        None if prompt_ns is None else prompt_ns / 1e9,
        output,
        None if output_ns is None else output_ns / 1e9,
        None if load_ns is None else load_ns / 1e9,
        None if total_ns is None else total_ns / 1e9,
    )


def _llama_timings(value: object, usage: Timings | None) -> Timings | None:
    """The `timings` of llama.cpp's server, in milliseconds, else the usage."""
    if not isinstance(value, dict):
        return usage
    cached, read, output = (_count(value.get(f"{name}_n")) for name in ("cache", "prompt", "predicted"))
    if cached is None or read is None:
        return usage
    if output is None and usage is not None:
        output = usage.eval_count
    reading, writing = _seconds(value.get("prompt_ms")), _seconds(value.get("predicted_ms"))
    return Timings(cached + read, reading, output, writing, cached_tokens=cached)


def _seconds(milliseconds: object) -> float | None:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    return milliseconds / 1e3 if 0 <= milliseconds < _MAX_FIGURE else None


def _usage(usage: object, prompt: str, completion: str) -> Timings | None:
    if not isinstance(usage, dict):
        return None
    return Timings(_count(usage.get(prompt)), None, _count(usage.get(completion)))


def _arguments(value: object) -> str:
    """As JSON: Ollama's own API and /v1/messages send an object, the others a JSON string."""
    if value is None or isinstance(value, str):
        return value or ""
    return _json(value)


def _json(value: object) -> str:
    from pydantic_core import to_json  # only here: it takes long to load

    return to_json(value, inf_nan_mode="null").decode()


def _str(value: object) -> str:
    return value if isinstance(value, str) else ""


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _index(value: object) -> int:
    return value if isinstance(value, int) else 0


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_FIGURE else None
