from __future__ import annotations

import pytest

from ollama_balancer.ollama.origins import (
    ALLOWED_HEADERS,
    LONGEST_HEADER_NAME,
    MAX_ASKED_HEADERS,
    allowed_headers,
    allowed_host,
    allowed_origin,
    check_host_pattern,
    check_pattern,
    same_origin,
)


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


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        ("https://chat.test", "https://chat.test", "https://chat.test:8443"),
        ("https://*.chat.test", "https://a.chat.test", "https://chat.test"),
        ("http://10.0.0.*:3000", "http://10.0.0.7:3000", "http://10.0.0.7:3001"),
        ("http://[::1]:3000", "http://[::1]:3000", "http://:3000"),
        ("chrome-extension://*", "chrome-extension://abc", "moz-extension://abc"),
    ],
)
def test_more_origins_can_be_allowed(pattern: str, allowed: str, refused: str) -> None:
    more = [check_pattern(pattern)]
    assert allowed_origin(allowed, more)
    assert allowed_origin(allowed.upper(), more)
    assert not allowed_origin(refused, more)
    assert not allowed_origin(allowed)


def test_a_star_allows_everybody() -> None:
    assert allowed_origin("https://anything.test", ["*"])
    assert allowed_origin("null", ["*"])


@pytest.mark.parametrize(
    "host", ["", "x", "balancer:8080", "127.0.0.1", "[::1]:80", "a.localhost", "a.local", "a.b.Test"]
)
def test_hosts_that_may_be_named_over_loopback(host: str) -> None:
    assert allowed_host(host, ["*.b.test"])


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "b.test", "a.b.test.evil", "x" * 300, "1.2.3.4.5"])
def test_hosts_that_may_be_anybodys(host: str) -> None:
    assert not allowed_host(host, ["*.b.test"])


def test_a_pattern_for_hosts_is_a_name_with_or_without_stars() -> None:
    assert check_host_pattern("*.Example.com") == "*.example.com"
    for wrong in ("http://a", "a:80", "a b", "", "é"):
        with pytest.raises(ValueError, match="not a host's name"):
            check_host_pattern(wrong)


def test_headers_that_a_page_asks_for_are_allowed_beside_ollamas() -> None:
    assert allowed_headers("") == ALLOWED_HEADERS
    assert allowed_headers("content-type, Authorization,") == ALLOWED_HEADERS
    assert allowed_headers("x-api-key,anthropic-version,x-api-key") == f"{ALLOWED_HEADERS},x-api-key,anthropic-version"


@pytest.mark.parametrize(
    "asked", ["a b", "a\r\nSet-Cookie: x", "é", "x:y", '"x"', "<x>", ",,,", "x" * (LONGEST_HEADER_NAME + 1), "*\x00"]
)
def test_what_is_no_headers_name_is_not_told_back(asked: str) -> None:
    assert allowed_headers(asked) == ALLOWED_HEADERS


def test_of_many_headers_a_bounded_number_is_told_back() -> None:
    many = ",".join(f"x-{number}" for number in range(100_000))
    assert len(allowed_headers(many).split(",")) == len(ALLOWED_HEADERS.split(",")) + MAX_ASKED_HEADERS
    assert allowed_headers("," * 100_000) == ALLOWED_HEADERS
