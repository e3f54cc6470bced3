"""What the clients ask, in all protocols, and whether what they get is an answer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ollama_balancer.simulator import SimulatedOllama
from tests.chaos.fleet import MODELS
from tests.chaos.host import EMBEDDER, TIMING

TEXTS = SimulatedOllama(timing=TIMING)
"""Says what a host generates."""


WEIGHTS = {
    "generate": 20,
    "chat": 20,
    "v1 chat": 14,
    "v1 completions": 6,
    "v1 responses": 8,
    "v1 messages": 10,
    "embed": 6,
    "v1 embeddings": 4,
    "tags": 2,
    "ps": 2,
    "models": 2,
    "show": 2,
    "pinned": 3,
    "unknown": 1,
}
"""How often which kind of request is made."""


@dataclass(frozen=True)
class ParsedRequest:
    """One request. `text` is the answer it must have, None where that is not text."""

    kind: str
    method: str
    path: str
    body: dict[str, Any] | None
    stream: bool
    text: str | None
    status: int = 200
    pin: str | None = None


def draw(rng: random.Random, number: int, hosts: list[str]) -> ParsedRequest:
    """The next request."""
    model, prompt = rng.choice(MODELS), f"number {number} " + "word " * rng.randrange(30)
    stream = rng.random() < 0.6
    messages = [{"role": "user", "content": prompt}]
    body: dict[str, Any] = {"model": model, "stream": stream}
    text = TEXTS.expected_text(prompt)
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    match kind:
        case "generate":
            return ParsedRequest(kind, "POST", "/api/generate", body | {"prompt": prompt}, stream, text)
        case "pinned":
            pin = rng.choice(hosts)
            return ParsedRequest(kind, "POST", "/api/generate", body | {"prompt": prompt}, stream, text, pin=pin)
        case "chat":
            return ParsedRequest(kind, "POST", "/api/chat", body | {"messages": messages}, stream, text)
        case "v1 chat":
            return ParsedRequest(kind, "POST", "/v1/chat/completions", body | {"messages": messages}, stream, text)
        case "v1 completions":
            return ParsedRequest(kind, "POST", "/v1/completions", body | {"prompt": prompt}, stream, text)
        case "v1 responses":
            return ParsedRequest(kind, "POST", "/v1/responses", body | {"input": prompt}, stream, text)
        case "v1 messages":
            return ParsedRequest(
                kind, "POST", "/v1/messages", body | {"messages": messages, "max_tokens": 1000}, stream, text
            )
        case "embed":
            return ParsedRequest(kind, "POST", "/api/embed", {"model": EMBEDDER, "input": prompt}, False, None)
        case "v1 embeddings":
            return ParsedRequest(kind, "POST", "/v1/embeddings", {"model": EMBEDDER, "input": prompt}, False, None)
        case "show":
            return ParsedRequest(kind, "POST", "/api/show", {"model": model}, False, None)
        case "unknown":
            return ParsedRequest(
                kind, "POST", "/api/chat", {"model": "nobody-has-it", "messages": messages}, False, None, 404
            )
        case _:
            path = {"tags": "/api/tags", "ps": "/api/ps", "models": "/v1/models"}[kind]
            return ParsedRequest(kind, "GET", path, None, False, None)


class BrokenAnswerError(Exception):
    """It is neither a whole answer nor an error in its protocol."""


def judge(asked: ParsedRequest, status: int, content: bytes) -> str:
    """`whole`, `error <status>` or `error event`. BrokenAnswerError: none of them."""
    try:
        if status != 200:
            _check_error(asked.path, json.loads(content))
            return "whole" if status == asked.status else f"error {status}"
        if asked.status != 200:
            raise BrokenAnswerError(f"status 200 and not {asked.status}")
        if not asked.stream:
            value = json.loads(content)
            if asked.text is not None:
                _check_text(asked, _WHOLE[asked.path](value))
            elif not isinstance(value, dict) or "error" in value:
                raise BrokenAnswerError(f"it says {content[:200]!r}")
            return "whole"
        events = _events(asked.path, content)
        if "error" in events[-1] or events[-1].get("type") == "error":
            _check_error(asked.path, events[-1])
            return "error event"
        if not _ENDS[asked.path](events[-1]):
            raise BrokenAnswerError(f"the stream ends with {events[-1]!r:.300}")
        _check_text(asked, "".join(_PIECES[asked.path](event) or "" for event in events))
        return "whole"
    except BrokenAnswerError:
        raise
    except (ValueError, KeyError, IndexError, TypeError) as e:
        raise BrokenAnswerError(f"{e!r} in {content[-300:]!r}") from e


def _check_text(asked: ParsedRequest, text: str) -> None:
    if text != asked.text:
        raise BrokenAnswerError(f"the text is {text!r} and not {asked.text!r}")


def _check_error(path: str, value: Any) -> None:
    """An error in the words of the protocol that belongs to the path."""
    if path == "/v1/messages":
        good = value["type"] == "error" and isinstance(value["error"]["message"], str)
    elif path == "/v1/responses" and value.get("type") == "error":
        good = isinstance(value["message"], str)
    elif path.startswith("/v1/"):
        good = isinstance(value["error"]["message"], str)
    else:
        good = isinstance(value["error"], str)
    if not good:
        raise BrokenAnswerError(f"this is no error of {path}: {value!r}")


def _events(path: str, content: bytes) -> list[dict[str, Any]]:
    if path.startswith("/api/"):
        if not content.endswith(b"\n"):
            raise BrokenAnswerError(f"it ends within a line: {content[-200:]!r}")
        return [json.loads(line) for line in content.splitlines() if line]
    if not content.endswith(b"\n\n"):
        raise BrokenAnswerError(f"it ends within an event: {content[-200:]!r}")
    data = [line[6:] for line in content.splitlines() if line.startswith(b"data: ")]
    return [{"[DONE]": True} if line == b"[DONE]" else json.loads(line) for line in data]


def _chat_piece(event: dict[str, Any]) -> Any:
    choices = event.get("choices")
    return choices[0].get("delta", {}).get("content") if choices else None


def _completion_piece(event: dict[str, Any]) -> Any:
    choices = event.get("choices")
    return choices[0].get("text") if choices else None


_PIECES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "/api/generate": lambda event: event.get("response"),
    "/api/chat": lambda event: event.get("message", {}).get("content"),
    "/v1/chat/completions": _chat_piece,
    "/v1/completions": _completion_piece,
    "/v1/responses": lambda event: event["delta"] if event["type"] == "response.output_text.delta" else None,
    "/v1/messages": lambda event: event["delta"].get("text") if event["type"] == "content_block_delta" else None,
}

_ENDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "/api/generate": lambda event: event.get("done") is True,
    "/api/chat": lambda event: event.get("done") is True,
    "/v1/chat/completions": lambda event: "[DONE]" in event,
    "/v1/completions": lambda event: "[DONE]" in event,
    "/v1/responses": lambda event: event["type"] == "response.completed",
    "/v1/messages": lambda event: event["type"] == "message_stop",
}

_WHOLE: dict[str, Callable[[dict[str, Any]], str]] = {
    "/api/generate": lambda value: str(value["response"]),
    "/api/chat": lambda value: str(value["message"]["content"]),
    "/v1/chat/completions": lambda value: str(value["choices"][0]["message"]["content"]),
    "/v1/completions": lambda value: str(value["choices"][0]["text"]),
    "/v1/responses": lambda value: str(value["output"][-1]["content"][0]["text"]),
    "/v1/messages": lambda value: str(value["content"][-1]["text"]),
}
