"""The ways to reach the balancer, and what is not behind it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import Hosts, Proxy, RawHost, running_proxy


def two_hosts(hosts: Hosts) -> list[str]:
    agents = ",".join(f"{name}={hosts.start(name, 'llama3.2', 'qwen3').url}" for name in ("one", "two"))
    return ["--set", f"balancer_agents={agents}"]


def test_an_explicit_proxy_client_reaches_the_fleet_whatever_host_it_names(tmp_path: Path, hosts: Hosts) -> None:
    with running_proxy(tmp_path, *two_hosts(hosts)) as proxy:
        proxy.wait_online("one", "two")
        with httpx.Client(proxy=proxy.url, trust_env=False, verify=False, timeout=30) as client:
            response = client.post("http://ollama.test:11434/api/generate", json={"model": "qwen3", "prompt": "x"})
            assert response.status_code == 200
            assert response.headers["X-Balancer-Agent"] in ("one", "two")
            stray = client.get("http://ollama.test:11434/index.html")
            assert stray.status_code == 404
            assert "index.html" in stray.json()["error"]


def test_the_reverse_mode_to_anything_reaches_the_fleet(tmp_path: Path, hosts: Hosts) -> None:
    with running_proxy(tmp_path, *two_hosts(hosts), "--mode", "reverse:http://anything.test") as proxy:
        proxy.wait_online("one", "two")
        assert proxy.generate().status_code == 200
        assert proxy.http.get("/api/version").json() == {"version": "0.33.0"}


def connect(proxy: Proxy, target: str) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as s:
        s.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        return s.recv(65536)


def test_it_is_no_open_proxy(tmp_path: Path, hosts: Hosts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as secret, running_proxy(tmp_path, *two_hosts(hosts)) as proxy:
        proxy.wait_online("one", "two")
        secret.setblocking(False)
        target = f"127.0.0.1:{secret.getsockname()[1]}"
        assert b" 403 " in connect(proxy, target).split(b"\r\n")[0]
        with httpx.Client(proxy=proxy.url, trust_env=False, verify=False, timeout=30) as client:
            for path in ("/", "/api/generate", "/secret", "/api/version"):
                response = client.request("GET", f"http://{target}{path}")
                assert response.status_code in (200, 404, 405)
                assert "secret" not in response.text or response.status_code == 404
        with pytest.raises(BlockingIOError):
            secret.accept()


def test_the_first_request_after_the_start_is_served(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    for _ in range(2):
        with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
            assert proxy.generate().status_code == 200


def test_the_first_request_waits_for_a_host_that_was_too_slow_when_first_asked(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    connections = 0

    async def slow_at_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await reader.read()  # says nothing until the other side gives up
            return
        to_host = await asyncio.open_connection("127.0.0.1", host.port)

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
            target.close()

        await asyncio.gather(pass_on(reader, to_host[1]), pass_on(to_host[0], writer))

    slow = RawHost(hosts, slow_at_first)
    try:
        with running_proxy(tmp_path, "--set", f"balancer_agents=one={slow.url}") as proxy:
            assert proxy.generate().status_code == 200
    finally:
        slow.stop()
