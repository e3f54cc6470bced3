from __future__ import annotations

import pytest

from ollama_balancer.ollama.origins import allowed_origin, same_origin


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "http://localhost",
        "https://localhost",
        "http://127.0.0.1:11434",
        "http://0.0.0.0:8080",
        "file://x",
        "app://x",
        "tauri://localhost",
        "vscode-webview://abc",
    ],
)
def test_origins_that_ollama_answers_are_allowed(origin: str) -> None:
    assert allowed_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.com",
        "chrome-extension://abc",
        "null",
        "",
        "http://localhost.evil.example.com",
        "http://evil.example.com/localhost",
        "http://localhost@evil.example.com",
        "http://[::1",
        "ftp://localhost",
    ],
)
def test_other_origins_are_not_allowed(origin: str) -> None:
    assert not allowed_origin(origin)


def test_a_page_of_the_balancers_own_address_is_of_the_same_origin() -> None:
    assert same_origin("http://llm.local", "llm.local")
    assert same_origin("https://10.0.0.1:8080", "10.0.0.1:8080")
    assert not same_origin("http://llm.local:81", "llm.local")
    assert not same_origin("http://evil.example.com", "llm.local")
    assert not same_origin("null", "")
