"""What is looked up in heads, and what is written into them."""

from __future__ import annotations

import pytest
from mitmproxy import http

from ollama_balancer.core.address import Address
from ollama_balancer.gateway import headers as heads
from ollama_balancer.gateway.headers import by_name
from ollama_balancer.gateway.messages import header
from ollama_balancer.mitm.headers import request_to_agent


def headers(*fields: tuple[str, str]) -> http.Headers:
    return http.Headers([(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in fields])


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (("Content-Type", "a"),),
        (("content-type", "a"), ("X", "y"), ("CONTENT-TYPE", "b")),
        (("Content-Types", "a"), ("ontent-type", "b")),
        (("Content-Type", "\udcff é"),),
    ],
)
def test_a_header_is_found_as_mitmproxy_finds_it(fields: tuple[tuple[str, str], ...]) -> None:
    given = headers(*fields)
    found = header(given.fields, b"content-type")
    assert found == given.get("content-type")
    raw = by_name(given.fields).get(b"content-type")
    assert (raw if raw is None else raw.decode("utf-8", "surrogateescape")) == found


@pytest.mark.parametrize(
    ("given", "then"),
    [
        ((("Accept", "*/*"), ("host", "a:1"), ("X", "y")), (("Host", "b:2"), ("Accept", "*/*"), ("X", "y"))),
        ((("Host", "a"), ("HOST", "c"), ("X", "y")), (("Host", "b:2"), ("X", "y"))),
        ((("X", "y"),), (("Host", "b:2"), ("X", "y"))),
    ],
)
def test_the_agent_gets_its_own_address_once_and_the_request_keeps_the_clients(
    given: tuple[tuple[str, str], ...], then: tuple[tuple[str, str], ...]
) -> None:
    request = http.Request.make("GET", "https://balancer:8080/api/tags?x=1", headers=headers(*given))
    request.authority = "balancer:8080"
    before = request.get_state()
    head = request_to_agent(request, address=Address("b", 2))
    assert head.headers == headers(*then)
    assert (head.url, head.authority, head.path) == ("http://b:2/api/tags?x=1", "", "/api/tags?x=1")
    assert request.get_state() == before


def for_client(head: http.Headers, attempts: int, agents: str, *, own: bool) -> None:
    head.fields = heads.for_client(head.fields, attempts, agents, own=own)


INERT = (("X-Content-Type-Options", "nosniff"), ("Content-Security-Policy", "sandbox"))


def test_an_agents_answer_says_who_gave_it_and_sets_nothing_for_the_balancers_address() -> None:
    head = headers(
        ("Content-Type", "application/json; charset=utf-8"),
        ("Set-Cookie", "b"),
        ("KEEP-ALIVE", "c"),
        ("Connection", "keep-alive"),
        ("x-balancer-agent", "somebody else"),
        ("X-Balancer-Attempts", "9"),
        ("Service-Worker-Allowed", "/"),
        ("Clear-Site-Data", "*"),
        ("Strict-Transport-Security", "max-age=1"),
        ("Alt-Svc", "h2=:1"),
        ("Refresh", "0; url=/"),
        ("content-security-policy", "default-src *"),
    )
    for_client(head, 2, "gpu-1", own=False)
    assert head == headers(
        ("Content-Type", "application/json; charset=utf-8"),
        *INERT,
        ("X-Balancer-Attempts", "2"),
        ("X-Balancer-Agent", "gpu-1"),
    )


@pytest.mark.parametrize("kind", ["text/html", "TEXT/HTML; charset=utf-8", "image/svg+xml", "", "application/json,a/b"])
def test_what_an_agent_sends_as_a_page_is_no_page(kind: str) -> None:
    head = headers(("content-type", kind))
    for_client(head, 1, "gpu-1", own=False)
    assert head.fields[0] == (b"content-type", b"application/octet-stream")


def test_that_a_connection_ends_with_the_answer_stays_said() -> None:
    head = headers(("Connection", "Close"))
    for_client(head, 1, "a", own=False)
    assert head["connection"] == "Close"


def test_the_balancers_own_answer_keeps_all_and_whom_it_names_unless_somebody_else_answered() -> None:
    head = headers(("Set-Cookie", "b"), ("X-Balancer-Agent", "the last that was tried"))
    for_client(head, 3, "", own=True)
    assert head["x-balancer-agent"] == "the last that was tried"
    assert (head["set-cookie"], head["x-balancer-attempts"]) == ("b", "3")
    for_client(head, 3, "a, b", own=True)
    assert head.get_all("x-balancer-agent") == ["a, b"]


def test_the_head_for_the_agent_is_another_and_has_no_body() -> None:
    fields = headers(("Origin", "http://b"), ("X", "y"), ("x-balancer-Priority", "batch"))
    request = http.Request.make("POST", "http://a/api/chat", b"body", fields)
    head = request_to_agent(request, "1.1 me")
    assert (head.raw_content, head.method, head.path) == (None, "POST", "/api/chat")
    assert "origin" not in head.headers
    assert "x-balancer-priority" not in head.headers
    assert head.headers["content-length"] == "4"
    head.headers["X"] = "z"
    head.path = "/"
    assert (request.headers["x"], request.path, request.raw_content) == ("y", "/api/chat", b"body")
    assert request.headers["origin"] == "http://b"
