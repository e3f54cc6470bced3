"""Requests that browsers, load balancers and agents send to find out what is there."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.e2e.harness import PATIENCE, Hosts, Proxy, running_proxy

WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    hosts = Hosts()
    try:
        host = hosts.start("a")
        with running_proxy(tmp_path_factory.mktemp("conf"), "--set", f"balancer_agents=a={host.url}") as proxy:
            proxy.wait_online("a")
            yield proxy
    finally:
        hosts.stop()


def until_closed(proxy: Proxy, request: bytes) -> tuple[str, dict[str, str], bytes]:
    """What comes until the balancer closes the connection: the status line, the headers, the rest."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as s, s.makefile("rb") as answer:
        s.sendall(request)
        head, _, body = answer.read().partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    return line, {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}, body


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        (b"GET / HTTP/1.0", 200, b"Ollama is running"),
        (b"HEAD / HTTP/1.0", 200, b""),
        (b"GET /api/version HTTP/1.0", 200, b'{"version": "0.33.0"}'),
        (b"OPTIONS / HTTP/1.0", 405, b'{"error":"OPTIONS is not allowed for /"}'),
    ],
)
def test_a_probe_of_http_1_0_needs_no_host(proxy: Proxy, request_line: bytes, status: int, body: bytes) -> None:
    line, _, answered = until_closed(proxy, request_line + b"\r\n\r\n")
    assert (int(line.split()[1]), answered) == (status, body)


def test_the_health_check_of_http_1_0_needs_no_host(proxy: Proxy) -> None:
    line, _, body = until_closed(proxy, b"GET /health HTTP/1.0\r\n\r\n")
    assert line.split()[1] == "200"
    assert json.loads(body)["status"] == "ok"


@pytest.mark.parametrize("host", [b"", b"Host: x\r\n", b"Host:\r\n"])
def test_a_client_of_http_1_0_is_served(proxy: Proxy, host: bytes) -> None:
    asked = b'{"model": "llama3.2", "prompt": "x"}'
    head = b"POST /api/generate HTTP/1.0\r\n%sContent-Length: %d\r\n\r\n" % (host, len(asked))
    line, headers, body = until_closed(proxy, head + asked)
    assert line == "HTTP/1.0 200 OK"
    assert headers["x-balancer-agent"] == "a"
    assert json.loads(body.splitlines()[-1])["done"] is True


def test_a_client_of_http_1_0_that_wants_its_connection_kept_is_told_so(proxy: Proxy) -> None:
    kept = b"GET /api/version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    last = b"GET /api/version HTTP/1.0\r\n\r\n"
    _, headers, rest = until_closed(proxy, kept + last)
    assert headers["connection"] == "keep-alive"
    assert rest.count(b"HTTP/1.1 200 OK") == 1


def test_an_empty_host_is_served(proxy: Proxy) -> None:
    line, _, body = until_closed(proxy, b"GET /api/version HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n")
    assert (line, body) == ("HTTP/1.1 200 OK", b'{"version": "0.33.0"}')


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (b"", "missing required Host header"),
        (b"Host: a\r\nHost: b\r\n", "too many Host headers"),
        (b"Host: a b\r\n", "malformed Host header"),
    ],
)
@pytest.mark.parametrize("path", [b"/api/generate", b"/v1/chat/completions", b"/v1/messages", b"/api/agents", b"/nope"])
def test_what_is_no_host_is_refused_in_the_servers_words_and_the_callers_protocol(
    proxy: Proxy, path: bytes, host: bytes, words: str
) -> None:
    request = b"POST %s HTTP/1.1\r\n%sContent-Length: 2\r\n\r\n{}" % (path, host)
    line, headers, body = until_closed(proxy, request)
    assert (line, headers["connection"]) == ("HTTP/1.1 400 Bad Request", "close")
    error = json.loads(body)["error"]
    assert (error if isinstance(error, str) else error["message"]) == words
    assert isinstance(error, dict) == path.startswith(b"/v1/")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "/api/chat"])
def test_a_websocket_is_refused_with_426_so_that_clients_send_a_post(proxy: Proxy, path: str) -> None:
    answer = proxy.http.get(path, headers=WEBSOCKET)
    assert answer.status_code == 426
    assert answer.headers["Upgrade"] == "HTTP/1.1"
    error = answer.json()["error"]
    assert (error if isinstance(error, str) else error["message"]) == f"there is no WebSocket at {path}: send a POST"
    assert proxy.http.get(path).status_code == 405
    served = proxy.http.post(
        path, json={"model": "llama3.2", "input": "x", "messages": [{"role": "user", "content": "x"}]}
    )
    assert served.status_code == 200  # on the same connection


def test_a_request_that_a_websocket_is_no_alternative_for_is_served(proxy: Proxy) -> None:
    assert proxy.http.get("/api/version", headers=WEBSOCKET).status_code == 200


@pytest.mark.parametrize("path", ["/api/chat", "/api/show", "/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_a_model_may_be_named_with_local(proxy: Proxy, path: str) -> None:
    asked = {"model": "llama3.2:local", "messages": [{"role": "user", "content": "x"}], "input": "x", "max_tokens": 5}
    answer = proxy.http.post(path, json=asked | {"stream": False})
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Balancer-Agent"] == "a"
    nobody = proxy.http.post(path, json=asked | {"model": "nope:local"})
    assert nobody.status_code == 404
    assert "model 'nope:local' not found" in nobody.text


def test_a_preflight_may_ask_for_the_headers_of_other_clients(proxy: Proxy) -> None:
    preflight = {
        "Origin": "http://localhost:3000",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "anthropic-version,authorization,traceparent,x-api-key",
    }
    answer = proxy.http.options("/v1/messages", headers=preflight)
    assert answer.status_code == 204
    allowed = answer.headers["Access-Control-Allow-Headers"].lower().split(",")
    assert {"anthropic-version", "authorization", "traceparent", "x-api-key", "content-type"} <= set(allowed)
    assert len(allowed) == len(set(allowed))
    stranger = proxy.http.options("/v1/messages", headers=preflight | {"Origin": "https://evil.example"})
    assert stranger.status_code == 403
    assert "Access-Control-Allow-Headers" not in stranger.headers
