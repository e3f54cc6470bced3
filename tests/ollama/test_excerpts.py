from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_balancer.gateway.body_reader import LONGEST_EXCERPT as LENGTH
from ollama_balancer.ollama.excerpts import last_turn
from ollama_balancer.ollama.json_scanning import MAX_DEPTH
from ollama_balancer.ollama.requests import read_request
from ollama_balancer.ollama.routes import find_route
from ollama_balancer.text import one_line


def excerpt(body: object, path: str = "/api/chat") -> str:
    written = body if isinstance(body, bytes) else json.dumps(body).encode()
    route = find_route(path)
    assert route
    return one_line(last_turn(written, read_request(route, path, written).members), LENGTH)


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/api/chat", chat(("system", "Be brief."), ("user", "one"), ("assistant", "1"), ("user", "two")), "two"),
        ("/api/chat", chat(("user", "call it"), ("assistant", ""), ("tool", "42")), "call it"),
        ("/api/generate", {"model": "m", "prompt": "Why is\n the   sky blue?"}, "Why is the sky blue?"),
        ("/v1/completions", {"model": "m", "prompt": ["a", "b"]}, "b"),
        ("/api/embed", {"model": "m", "input": ["first", "last"]}, "last"),
        ("/v1/responses", {"model": "m", "input": "hello"}, "hello"),
        (
            "/v1/responses",
            {"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]},
            "hello",
        ),
        (
            "/v1/messages",
            chat(
                ("user", [{"type": "text", "text": "<reminder>"}, {"type": "text", "text": "do it"}]),
                ("user", [{"type": "tool_result", "content": "x"}]),
            ),
            "do it",
        ),
        ("/v1/chat/completions", chat(("user", [{"type": "text", "text": "see"}, {"type": "image_url"}])), "see"),
        ("/api/chat", chat(("user", "")), ""),
        ("/api/chat", chat(), ""),
        ("/api/chat", {"model": "m", "messages": 5}, ""),
        ("/api/generate", {"model": "m"}, ""),
        ("/api/generate", {"model": "m", "prompt": None}, ""),
    ],
)
def test_it_is_what_the_user_said_last(path: str, body: dict[str, Any], said: str) -> None:
    assert excerpt(body, path) == said


@pytest.mark.parametrize("filler", ["x", "é", '"', "\\", "😀", "\n", "\u202e"])
@pytest.mark.parametrize("length", [1, LENGTH, 5_000, 2_000_000])
def test_it_is_one_short_line_whatever_the_prompt(filler: str, length: int) -> None:
    said = excerpt({"model": "m", "prompt": filler * length}, "/api/generate")
    assert len(said) <= LENGTH + 1
    assert said.isprintable()
    if filler.isprintable():
        assert said.startswith(filler)


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [{"role": "user", "content": "\\ud83d"}]}',
        b'{"messages": [{"role": "user", "content": "\\u12',
        b'{"messages": [{"role": "user", "content": [[[[',
        b'{"messages": ' + b"[" * 2 * MAX_DEPTH,
        b'{"messages": [' + b'{"role":"user","content":[{}]},' * 100_000 + b"{}]}",
        b'{"messages": [{}, 5, null, {"role": 5, "content": {}}]}',
        b'{"prompt": ' + b'"\\u0000\\u001b[31m' + b"x" * 3_000 + b'"}',
    ],
)
def test_nothing_is_raised_whatever_comes(body: bytes) -> None:
    for path in ("/api/chat", "/api/generate"):
        assert excerpt(body, path).isprintable()


@given(st.text(max_size=300))
def test_the_beginning_is_that_of_the_text(text: str) -> None:
    said = excerpt(chat(("user", text)))
    words = " ".join(text.split())
    assert len(said) <= LENGTH + 1
    if words.isprintable():
        assert said.removesuffix("…") == words[:LENGTH]
