"""Estimates the size of a prompt and hashes its prefixes, without parsing the whole body.

The balancer needs to know how long a chat is and which host has its prefix cached. Messages are hashed as written, one
after the other: a client that continues a conversation sends the same messages again and some more. Only hashes are
kept. The cost is proportional to the body at the speed of `bytes.find`, plus the messages, which the scanner's steps
bound; of large messages only both ends are hashed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from .json_scanning import EMPTY_LIST, Scanner, Span, UnreadableError, written
from .routes import Route
from .shapes import CONTEXT_ENDS, Context

BYTES_A_TOKEN = 4
"""An estimate for prompts as written in the body."""

IMAGE_TOKENS = 600
"""Tokens per image, whatever its size in bytes."""

MAX_TOKENS = 131_072
"""The host truncates longer prompts."""

MAX_PREFIXES = 64
"""Prefixes of a prompt that are looked up: the first one and the longest ones."""

STRIDE = 1_024
"""Bytes between two prefixes of a prompt that is a single text."""

MAX_HASHED = 65_536
"""Bytes hashed per message; of a larger one, half at its beginning and half at its end."""

MAX_HASHED_OF_ALL = 4 * 1024 * 1024
"""Bytes hashed like that in all; of each further message only FEW_HASHED bytes are hashed."""

FEW_HASHED = 1_024

MAX_TEXT_BYTES = 8 * 1024 * 1024
"""Bytes of a single text in which prefixes are hashed: more than any context holds."""

MAX_OPTIONS = 16_384
"""Bytes of `options`; larger ones are ignored."""

RUNNER_OPTIONS = ("main_gpu", "num_batch", "num_ctx", "num_gpu", "num_thread", "use_mmap")
"""A host reloads the model if one of these changes (api.Runner in the server's source)."""

FEW_TOKENS = 64
"""Shorter prompts, and shorter prefixes, are not worth tracking."""

_BLOB_BYTES = 4_096


type Prefix = tuple[bytes, int]
"""The hash of a prompt's prefix, and its length in tokens."""


class PromptReading(NamedTuple):
    """What a prompt demands of a host."""

    runner: str = ""
    """The options that the model must be loaded with, in canonical form."""
    tokens: int = 0
    """Estimated."""
    prefixes: tuple[Prefix, ...] = ()
    """Its prefixes, the shortest first; none for a very short prompt."""
    new_prefixes: tuple[Prefix, ...] = ()
    """The prefixes by which a follow-up prompt is recognized."""
    output_limit: int | None = None
    """The maximum number of output tokens; 0 for an embedding."""
    tools: bool = False
    """Whether the model may call any."""


@dataclass(frozen=True)
class _Shape:
    """The members that form a route's prompt: `preamble`, then `content`, and `others` in any order."""

    content: str
    preamble: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    limit: tuple[str, ...] = ()
    """Members that limit the output tokens; the first that is a number counts."""
    ollama: bool = False
    """Whether the route accepts `options`."""
    embeds: bool = False


_SHAPES = {
    "/api/chat": _Shape("messages", ("tools",), ollama=True),
    "/api/generate": _Shape("prompt", ("system", "template"), ("suffix", "images"), ollama=True),
    "/v1/chat/completions": _Shape("messages", ("tools",), limit=("max_tokens", "max_completion_tokens")),
    "/v1/completions": _Shape("prompt", others=("suffix",), limit=("max_tokens",)),
    "/v1/messages": _Shape("messages", ("system", "tools"), limit=("max_tokens",)),
    "/v1/responses": _Shape("input", ("instructions", "tools"), limit=("max_output_tokens",)),
    "/api/embed": _Shape("input", ollama=True, embeds=True),
    "/api/embeddings": _Shape("prompt", ollama=True, embeds=True),
    "/v1/embeddings": _Shape("input", embeds=True),
}

# A client moves this marker to its newest message; without removing it, the older ones would hash differently.
_CACHE_CONTROL = re.compile(rb'(?:,\s{0,8}+)?+"cache_control"\s{0,8}+:\s{0,8}+(?:null|\{[^{}]{0,256}+\})')
_NUMBER = re.compile(rb"[0-9]++")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_=-]++")


def read_prompt(route: Route, model: str, body: bytes, members: Mapping[str, Span]) -> PromptReading:
    """Read what the prompt demands. `model` is a canonical name, `members` are the body's. Never raises."""
    shape = _SHAPES.get(route.path)
    if shape is None:
        return PromptReading(tokens=min(len(body) // BYTES_A_TOKEN, MAX_TOKENS))
    options = _options(body, members) if shape.ollama else {}
    runner = _runner(options, shifts=not shape.ollama or written(body, members.get("shift"), 5) != b"false")
    limit = 0 if shape.embeds else _limit(shape, body, members, options)
    preamble = [members[key] for key in shape.preamble if key in members]
    others = [members[key] for key in (shape.content, *shape.others) if key in members]
    context = members.get("context") if shape.ollama else None
    start = sum([_tokens(body, span) for span in preamble])
    tokens = start + sum([_tokens(body, span) for span in others])
    prefixes: list[Prefix] = []
    new_prefixes: tuple[Prefix, ...] = ()
    if context is not None and body[context[0]] == ord("["):
        known = _read_context(body, context)
        prefixes = [context_prefix(model, runner, known)]
        tokens += known.tokens
    elif not shape.embeds and shape.content in members and tokens >= FEW_TOKENS:
        hashed = _hash(model, runner)
        for span in preamble:
            hashed.update(_essence(body, span))
            hashed.update(b"\0")
        content = members[shape.content]
        prefixes = list(_prefixes(hashed, start, body, content))
        if prefixes:
            new_prefixes = tuple({prefix: None for prefix in (prefixes[0], prefixes[-1]) if prefix[1] >= FEW_TOKENS})
    most = _positive(options.get("num_ctx")) if options else None
    tokens = min(tokens, most or MAX_TOKENS, MAX_TOKENS)
    tools = "tools" in shape.preamble and _has_elements(body, members.get("tools"))
    return PromptReading(runner, tokens, tuple(prefixes), new_prefixes, limit, tools)


def context_prefix(model: str, runner: str, context: Context) -> Prefix:
    """The prefix of a request that continues this context."""
    hashed = _hash(model, runner)
    hashed.update(b"%d " % context.tokens + b",".join(context.ends))
    return hashed.digest(), context.tokens


def _read_context(body: bytes, span: Span) -> Context:
    start, end = span
    window = 64 * CONTEXT_ENDS  # wide enough for numbers on lines of their own
    ends = _NUMBER.findall(body, start, min(end, start + window))[:CONTEXT_ENDS]
    ends += _NUMBER.findall(body, max(start, end - window), end)[-CONTEXT_ENDS:]
    return Context(body.count(b",", start, end) + 1, tuple(ends))


def _hash(model: str, runner: str) -> blake2b:
    return blake2b(f"{model}\0{runner}\0".encode(), digest_size=16)


def _prefixes(hashed: blake2b, tokens: int, body: bytes, span: Span) -> Iterator[Prefix]:
    """The prefixes of a list of messages or of a text, the shortest first; `tokens` is the number before it."""
    if body[span[0]] == ord("["):
        try:
            parts = list(Scanner(body).elements(span[0]))
        except (UnreadableError, IndexError):
            return
    elif body[span[0]] == ord('"'):
        # The last of them is not whole, and differs as soon as the text goes on.
        parts = [
            (at, at + STRIDE) for at in range(span[0] + 1, min(span[1], span[0] + MAX_TEXT_BYTES) - STRIDE, STRIDE)
        ]
    else:
        return
    wanted = len(parts) - MAX_PREFIXES + 1
    left = MAX_HASHED_OF_ALL
    for number, part in enumerate(parts):
        essence = _essence(body, part, MAX_HASHED if left > 0 else FEW_HASHED)
        hashed.update(essence + b"\0")
        left -= len(essence)
        tokens += _tokens(body, part)
        if number == 0 or number >= wanted:
            yield hashed.digest(), tokens


def _essence(body: bytes, span: Span, most: int = MAX_HASHED) -> bytes:
    """The bytes of that part of the body that are hashed."""
    start, end = span
    if end - start <= most:
        text = body[start:end]
    else:
        half = most // 2
        text = b"%d %b%b" % (end - start, body[start : start + half], body[end - half : end])
    return _CACHE_CONTROL.sub(b"", text) if b'"cache_control"' in text else text


def _tokens(body: bytes, span: Span) -> int:
    """Estimate its tokens. Long strings without quotes or spaces count as base64 images."""
    start, end = span
    size, images, at = end - start, 0, start
    while end - at > _BLOB_BYTES:
        last = body.rfind(b'"', at, at + _BLOB_BYTES)
        if last >= 0:
            at = last + 1
            continue
        quote = body.find(b'"', at + _BLOB_BYTES, end)
        until = quote if quote >= 0 else end
        middle = (at + until) // 2
        if _BASE64.fullmatch(body, middle, middle + 256):
            images += 1
            size -= until - at
        at = until
    return size // BYTES_A_TOKEN + images * IMAGE_TOKENS


def _options(body: bytes, members: Mapping[str, Span]) -> dict[str, Any]:
    start, end = members.get("options", (0, 0))
    if not 0 < end - start <= MAX_OPTIONS:
        return {}
    try:
        options = json.loads(body[start:end])
    except (ValueError, RecursionError):
        return {}
    return options if isinstance(options, dict) else {}


def _runner(options: dict[str, Any], *, shifts: bool) -> str:
    """The options that the model is loaded with, in canonical form. `shift` is a member of the request itself."""
    if not options:
        return "" if shifts else "shift=0"
    values = ((key, options.get(key)) for key in RUNNER_OPTIONS)
    assignments = [
        f"{key}={int(value)}" for key, value in values if isinstance(value, int | float) and abs(value) < 2**53
    ]
    return ",".join(assignments if shifts else [*assignments, "shift=0"])


def _limit(shape: _Shape, body: bytes, members: Mapping[str, Span], options: dict[str, Any]) -> int | None:
    if shape.ollama:
        return _positive(options.get("num_predict"))
    for key in shape.limit:
        start, end = members.get(key, (0, 0))
        digits = body[start:end]
        if 0 < len(digits) < 16 and digits.isdigit() and int(digits):
            return int(digits)
    return None


def _has_elements(body: bytes, span: Span | None) -> bool:
    return span is not None and body[span[0]] == ord("[") and EMPTY_LIST.fullmatch(body, *span) is None


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
