"""Lays out a request and its answer as text: where it went and why, what was said, and how fast it was."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import from_json

from ...ollama.answer_watcher import NO_TERMINAL, AnswerWatcher
from ...ollama.answers import MAX_TEXT, Answer
from ...ollama.events import event_parser
from ...ollama.shapes import Timings, speed_of
from ...ollama.truncation import gap, split_gap, truncated
from ...tables import in_columns
from ...text import one_line
from .conversation import MAX_SHOWN_TEXT, Prompt, Turn, display, read_prompt, without_base64

MAX_EVENTS = 100_000
"""Lines of a stream that are read, half of them at its beginning: a host may send millions of empty ones."""

MAX_LINES = 200
"""Of the progress of a pull, a push or a create."""

_LINE_END = re.compile(rb"\n")
_EVENT_END = re.compile(rb"(?:\r?\n){2}")

WIDTH = 88
"""Characters of a line; mitmweb does not break long ones."""

_LINE = re.compile(rf".{{1,{WIDTH}}}(?:\s|$)|.{{1,{WIDTH}}}", re.DOTALL)
"""textwrap takes seconds for a long text of blanks, and drops them."""

_TIMES = {"TTFT": "first", "wait": "wait", "load": "loads", "prompt": "prefill"}
"""Seconds that a client would measure, as people read them, and as they are recorded."""

_TERMS = {"cost": "cost", "answer": "answer", "interference": "harm"}
"""Of the score: no time that anybody could measure."""


def render_request(body: bytes, record: object) -> str:
    """What was asked. `record` is the balancer's, from the flow; it may be anything."""
    sections = [_decision(record)]
    prompt = read_prompt(body)
    if prompt is None:
        title = "Body (not a JSON object)" if split_gap(body) is None else "Body (its middle is not stored)"
        sections.append(section(title, _raw(body)))
    else:
        width = max((len(key) for key, _ in prompt.settings), default=0)
        sections.append(section("Request", [f"{key:{width}}  {value}" for key, value in prompt.settings]))
        sections.append(section("Conversation", [_turn(turn) for turn in prompt.turns]))
    return "\n\n".join(filter(None, sections))


def render_answer(body: bytes, content_type: str, request: bytes, record: object) -> str:
    """What came back, after the decision and the last turn of what was asked. `content_type` is in lower case."""
    sections = [_decision(record)]
    prompt = read_prompt(request) if request else None
    if prompt is not None:
        sections.append(section("Conversation", _latest_turns(prompt)))
    elif split_gap(request) is not None:
        sections.append(section("Conversation", ["(not stored completely: see the request)"]))
    answer, content, notes = _read(body, content_type)
    if vectors := _vectors(body, content_type):
        content = [vectors]
    elif not (content or answer.error or answer.timings.eval_count) and body and "ndjson" not in content_type:
        content = _raw(body)
    sections.append(section("Answer", content + [f"! {note}" for note in notes]))
    sections.append(section("Timings", _figures(answer.timings, record)))
    return "\n\n".join(filter(None, sections))


def section(title: str, blocks: Iterable[str]) -> str:
    text = "\n".join(blocks)
    return f"== {title} ==\n{text}" if text else ""


def _turn(turn: Turn) -> str:
    return f"{turn.who}:\n{wrapped(turn.text)}"


def wrapped(text: str, *, hanging: bool = False) -> str:
    """The text in lines of WIDTH, indented; `hanging`: but the first of each line."""
    lines = (_LINE.findall(line) if len(line) > WIDTH else [line] for line in text.splitlines())
    return "\n".join(
        f"{'' if hanging and not at else '  '}{line}".rstrip() for parts in lines for at, line in enumerate(parts)
    )


def _latest_turns(prompt: Prompt) -> list[str]:
    user_turns = [at for at, turn in enumerate(prompt.turns) if turn.who.startswith(("user", "input"))]
    at = user_turns[-1] if user_turns else max(0, len(prompt.turns) - 1)
    before = [f"({at} earlier {'turn' if at == 1 else 'turns'}: see the request)"] if at else []
    return before + [_turn(turn) for turn in prompt.turns[at:]]


# The decision


def _decision(record: object) -> str:
    if not isinstance(record, Mapping):
        return ""
    get = record.get
    who = f"→ {_word(get('agent')) or 'no agent'}"
    if url := _word(get("url")):
        who += f" ({url})"
    lines = [" · ".join(filter(None, [who, _word(get("mode")), _word(get("why"))]))]
    facts = []
    if (waited := _number(get("waited_ms"))) is not None and waited >= 1:
        priority = _word(get("priority"))
        as_class = f" as {priority}" if priority and priority != "normal" else ""
        facts.append(f"waited {waited / 1000:.1f} s{as_class}")
    if attempts := _number(get("attempts")):
        facts.append(f"{attempts:.0f} {'attempt' if attempts == 1 else 'attempts'}")
    if get("pinned") is True:
        facts.append("pinned by the request")
    facts += [text for key in ("client", "outcome") if (text := _word(get(key)))]
    lines += [" · ".join(facts)] if facts else []
    if problem := _word(get("problem")):
        lines.append(f"! {problem}")
    for failure in _dicts(get("failures")):
        lines.append(f"tried {_word(failure.get('agent'))}: {_word(failure.get('reason'))}")
    options = _dicts(get("options"))
    if options:
        head = ["agent", *(f"{time} s" for time in _TIMES), "free", "seen", *_TERMS]
        rows = [
            [
                _word(option.get("agent")) or "-",
                *(_estimated(option.get(time), option) for time in _TIMES.values()),
                "yes" if option.get("free") is True else "no" if option.get("free") is False else "-",
                _word(option.get("observations")) or "-",
                *(_figure(option.get(term)) for term in _TERMS.values()),
            ]
            for option in options
        ]
        lines += ["", in_columns([head, *rows])]
    elif candidates := _dicts(get("candidates")):
        shown_rows = [
            [_word(each.get("agent")) or "-", _word(each.get("score")) or "-", _word(each.get("in_flight")) or "-"]
            for each in candidates
        ]
        lines += ["", in_columns([["agent", "score", "in flight"], *shown_rows])]
    return section("Decision", lines)


def _word(value: object) -> str:
    if isinstance(value, str):
        return one_line(value, 300)
    return "" if _number(value) is None else str(value)


def _number(value: object) -> float | None:
    """A figure that can be shown as one."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15:
        return float(value)
    return None


def _figure(value: object) -> str:
    number = _number(value)
    return "-" if number is None else f"{number:.2f}"


def _estimated(value: object, option: Mapping[str, Any]) -> str:
    """Seconds, marked where they are a guess."""
    return f"~{_figure(value)}" if _number(value) and option.get("guess") is True else _figure(value)


def _dicts(value: object) -> list[Mapping[str, Any]]:
    return [each for each in value[:100] if isinstance(each, Mapping)] if isinstance(value, list) else []


# The answer


def _read(body: bytes, content_type: str) -> tuple[Answer, list[str], list[str]]:
    """The answer with its figures, what it says, and what is wrong with it."""
    if "json" not in content_type or "ndjson" in content_type:
        body = _bounded(body)
    cut = split_gap(body)
    if cut is not None and event_parser(content_type) is None:
        return Answer(), [], []
    head, left_out, tail = cut if cut is not None else (body, 0, b"")
    watcher = AnswerWatcher(content_type)
    watcher.feed(head)
    if cut is None:
        begun = bool(watcher.partial_event.line or watcher.partial_event.data)
        error = watcher.verdict().error
        if error == NO_TERMINAL and begun:
            error += ", in the middle of an event"
        return watcher.answer, _content(watcher.answer, body, content_type), [] if error is None else [error]
    rest = AnswerWatcher(content_type)
    start = (_EVENT_END if "event-stream" in content_type else _LINE_END).search(tail)
    tail = tail[start.end() :] if start is not None else b""
    rest.feed(tail)
    errors = [watcher.answer.error, rest.verdict().error]
    content = [
        *_content(watcher.answer, head, content_type),
        gap(left_out),
        *_content(rest.answer, tail, content_type),
    ]
    return rest.answer, content, [error for error in errors if error is not None]


def _bounded(body: bytes) -> bytes:
    """The stream, without its middle where it has too many lines."""
    lines = body.count(b"\n")
    if lines <= MAX_EVENTS:
        return body
    kept = len(body) * MAX_EVENTS // lines // 2
    return truncated(body[:kept], body[-kept:], len(body) - 2 * kept)


def _raw(body: bytes) -> list[str]:
    """A body as it is; both its ends, where the middle is not kept."""
    cut = split_gap(body)
    if cut is None:
        return [display(_text(body))]
    head, left_out, tail = cut
    end = _text(tail)
    if len(end) > MAX_SHOWN_TEXT:
        end = f"({len(end) - MAX_SHOWN_TEXT:,} earlier characters) …{end[-MAX_SHOWN_TEXT:]}"
    return [display(_text(head)), gap(left_out), end]


def _text(body: bytes) -> str:
    return without_base64(body.decode("utf-8", "replace"))


def _content(answer: Answer, body: bytes, content_type: str) -> list[str]:
    """What the model said, or how far a pull, a push or a create got."""
    return _message_turns(answer) or (_progress(body) if "ndjson" in content_type else [])


def _message_turns(answer: Answer) -> list[str]:
    content = (("thinking", answer.thinking), ("assistant", answer.text))
    turns = [Turn(who, text if len(text) < MAX_TEXT else f"{text}…") for who, text in content]
    turns += [Turn(f"calls {one_line(call.name, 200)}", _pretty(call.arguments)) for call in answer.tool_calls]
    return [_turn(turn) for turn in turns if turn.text or turn.who.startswith("calls")]


def _pretty(arguments: str) -> str:
    try:
        return json.dumps(from_json(arguments), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments


def _vectors(body: bytes, content_type: str) -> str:
    """Of an answer with embeddings: how many, of what size."""
    if "json" not in content_type or b'"embedding' not in body:
        return ""
    if (cut := split_gap(body)) is not None:
        return f"vectors\n{gap(cut[1])}"
    try:
        value = from_json(body)
    except ValueError:
        return ""
    if not isinstance(value, dict):
        return ""
    data = value.get("data")
    if isinstance(data, list):
        vectors = [item.get("embedding") for item in data if isinstance(item, dict)]
    else:
        found = value.get("embeddings", [value.get("embedding")])
        vectors = found if isinstance(found, list) else []
    sizes = [len(vector) for vector in vectors if isinstance(vector, list | str)]
    if not sizes:
        return ""
    unit = "characters of base64" if isinstance(vectors[0], str) else "numbers"
    return f"{len(sizes)} {'vector' if len(sizes) == 1 else 'vectors'} of {sizes[0]} {unit}"


def _progress(body: bytes) -> list[str]:
    """The lines of a pull, a push or a create, the last of each step."""
    steps: dict[str, str] = {}
    for line in _bounded(body).split(b"\n"):
        try:
            value = from_json(line) if line.startswith(b"{") else None
        except ValueError:
            continue
        if not isinstance(value, dict) or not isinstance(value.get("status"), str):
            continue
        status = one_line(value["status"], 200)
        done, total = _number(value.get("completed")), _number(value.get("total"))
        known = done is not None and total
        steps[status] = f"{status}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB" if known else status  # type: ignore[operator]
        if len(steps) >= MAX_LINES:
            break
    return list(steps.values())


def _figures(timings: Timings, record: object) -> list[str]:
    fields: Mapping[str, Any] = record if isinstance(record, Mapping) else {}
    lines = []
    if timings.load_duration is not None:
        lines.append(f"load    {_time(timings.load_duration)}")
    for name, tokens, seconds in (
        ("prompt", timings.prompt_eval_count, timings.prompt_eval_duration),
        ("answer", timings.eval_count, timings.eval_duration),
    ):
        if tokens is not None:
            cached = (timings.cached_tokens or 0) if name == "prompt" else 0
            kept = f", {cached:,} of them cached," if cached else ""
            took = f" in {_time(seconds)}" if seconds else ""
            rate = f", {speed:,.1f} tokens/s" if (speed := speed_of(tokens - cached, seconds)) is not None else ""
            lines.append(f"{name}  {tokens:,} tokens{kept}{took}{rate}")
    if timings.total_duration is not None:
        lines.append(f"host    {_time(timings.total_duration)} in total")
    speed = _number(fields.get("tokens_per_second"))
    if speed is not None and timings.eval_duration is None:
        lines.append(f"speed   {speed:,.1f} tokens/s, as the balancer saw them arrive")
    for name, milliseconds in (
        ("first ", _number(fields.get("first_byte_ms"))),
        ("total ", _number(fields.get("total_ms"))),
    ):
        if milliseconds is not None:
            lines.append(f"{name}  {_time(milliseconds / 1000)} after the request arrived")
    return lines


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
