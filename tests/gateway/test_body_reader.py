from __future__ import annotations

import asyncio
import threading

import pytest

from ollama_balancer.gateway import body_reader
from ollama_balancer.gateway.body_reader import LARGE, Reading, read_body, read_large
from ollama_balancer.ollama.names import canonical_name
from ollama_balancer.ollama.requests import read_request
from ollama_balancer.ollama.routes import find_route


def chat(size: int) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"' + b"x " * (size // 2) + b'"}]}'


@pytest.mark.parametrize(
    ("size", "in_a_thread"), [(100, False), (LARGE - 999, False), (LARGE, True), (9_000_000, True)]
)
def test_a_large_body_is_read_in_a_thread_and_says_the_same(
    size: int, in_a_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = find_route("/api/chat")
    assert route is not None
    body = chat(size)
    expected = read_body(route, "/api/chat", body, "", "", canonical_name)
    threads: list[threading.Thread] = []

    def noted(*arguments: object) -> object:
        threads.append(threading.current_thread())
        return read_request(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(body_reader, "read_request", noted)
    read = asyncio.run(read_large("/api/chat?x=1", body, "", "", canonical_name))
    assert read == (expected if in_a_thread else None)
    assert isinstance(expected, Reading)
    assert expected.parsed.model == "m"
    assert expected.demand is not None and expected.demand.tokens > 0
    assert [thread is threading.main_thread() for thread in threads] == ([False] if in_a_thread else [])


@pytest.mark.parametrize(("target", "body"), [("/nothing/here", chat(LARGE)), ("/api/chat", None), ("/api/chat", b"")])
def test_what_is_not_read_needs_no_thread(target: str, body: bytes | None) -> None:
    assert asyncio.run(read_large(target, body, "", "", canonical_name)) is None


def test_what_runs_no_model_demands_nothing() -> None:
    for path, body in (("/api/show", chat(10)), ("/api/generate", b'{"model":"m","keep_alive":0}'), ("/api/tags", b"")):
        route = find_route(path)
        assert route is not None
        read = read_body(route, path, body, "", "", canonical_name)
        assert isinstance(read, Reading)
        assert read.demand is None
