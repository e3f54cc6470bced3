"""No host and no web page of somebody else's acts in the balancer's name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.e2e.harness import TOKEN, Hosts, Proxy, RawHost, running_proxy
from tests.e2e.scripted import ScriptedHost
from tests.e2e.test_hostile import raw

PAGE = b"<script>navigator.serviceWorker.register('/v1/models/m')</script>"
FIELDS = b"Content-Type: text/html\r\nService-Worker-Allowed: /\r\nSet-Cookie: a=b\r\nRefresh: 0; url=/x\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE)


def get(proxy: Proxy, path: str, host: str, *fields: str) -> bytes:
    head = "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *fields])
    return raw(proxy, head.encode() + b"\r\n\r\n")


@pytest.mark.parametrize("status", [b"200 OK", b"404 Not Found", b"500 Internal Server Error", b"503 Unavailable"])
def test_a_page_that_a_host_sends_is_inert(tmp_path: Path, hosts: Hosts, status: bytes) -> None:
    host = ScriptedHost(hosts, {"/v1/models/m": b"HTTP/1.1 " + status + b"\r\n" + FIELDS + LENGTH})
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        answer = proxy.http.get("/v1/models/m")
        assert "html" not in answer.headers["content-type"]
        if answer.content == PAGE:
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-security-policy"] == "sandbox"
        for name in ("service-worker-allowed", "set-cookie", "refresh"):
            assert name not in answer.headers
    host.stop()


def test_a_name_that_is_made_to_point_here_reads_nothing(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    options = ("--set", f"balancer_agents=one={host.url}", "--set", "balancer_hosts=*.friends.example")
    with running_proxy(tmp_path, *options) as proxy:
        proxy.wait_online("one")
        for path in ("/api/agents", "/dashboard", "/metrics", "/api/tags", "/"):
            for name in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "mitm.it"):
                assert get(proxy, path, name).startswith(b"HTTP/1.1 403"), (path, name)
            for name in ("127.0.0.1", "[::1]:8080", "localhost:8080", "balancer", "ai.friends.example:80"):
                assert get(proxy, path, name).startswith(b"HTTP/1.1 200"), (path, name)
        assert b"balancer_hosts" in get(proxy, "/api/agents", "evil.example")
        # Who has the token is no page of somebody else's, and neither is who uses the balancer as its HTTP proxy.
        assert get(proxy, "/api/agents", "evil.example", f"Authorization: Bearer {TOKEN}").startswith(b"HTTP/1.1 200")
        assert get(proxy, "http://ollama.example/api/tags", "ollama.example").startswith(b"HTTP/1.1 200")


def test_a_service_worker_is_not_served(tmp_path: Path) -> None:
    with running_proxy(tmp_path) as proxy:
        assert proxy.http.get("/dashboard", headers={"Service-Worker": "script"}).status_code == 403


def test_each_host_of_a_request_to_all_gets_its_own_name(tmp_path: Path, hosts: Hosts) -> None:
    named: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            named.extend(line for line in head.lower().split(b"\r\n") if line.startswith(b"host:"))
            text = b'{"version":"1.0"}' if b"/api/version" in head else b'{"models":[{"name":"m"}]}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))

    host = RawHost(hosts, serve)
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        assert raw(proxy, b"DELETE /api/delete HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").startswith(
            b"HTTP/1.1 200"
        )
    host.stop()
    assert set(named) == {b"host: " + host.url.removeprefix("http://").encode()}
