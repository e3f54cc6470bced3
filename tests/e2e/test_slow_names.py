"""Names of hosts that take longer to resolve than any client of these tests waits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx

from tests.e2e.harness import Hosts, running_proxy

RESOLVER = """
import socket, threading, time
from agent_reporter import resolving

resolving.FRESH_SECONDS = 0.1
_look_up = socket.getaddrinfo
_asked = set()

def look_up(host, port, *arguments, **more):
    host = host.decode() if isinstance(host, bytes) else host
    if host is None or not host.endswith(".test"):
        return _look_up(host, port, *arguments, **more)
    if host.startswith("slow") or (host.startswith("once") and host in _asked):
        time.sleep(40)
    _asked.add(host)
    return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", int(port or 0)))]

socket.getaddrinfo = look_up
"""
"""What slow name servers would say: names that begin with `once` are quick the first time."""


def test_slow_names_starve_neither_other_names_nor_metrics(tmp_path: Path, hosts: Hosts) -> None:
    script = tmp_path / "resolver.py"
    script.write_text(RESOLVER)
    host, other = hosts.start("one"), hosts.start("two", "mistral")
    slow = ",".join(f"slow{number}=http://slow{number}.test:{10_000 + number}" for number in range(40))
    agents = f"{slow},quick=http://quick.test:{host.port},once=http://once.test:{other.port}"
    with running_proxy(tmp_path, "-s", str(script), "--set", f"balancer_agents={agents}") as proxy:
        proxy.wait_online("quick", "once")
        copy = {"source": "mistral", "destination": "other"}
        asks: list[Callable[[], httpx.Response]] = [
            lambda: proxy.http.get("/metrics"),
            lambda: proxy.generate("llama3.2"),
            lambda: proxy.generate("mistral"),
            lambda: proxy.http.post("/api/copy", json=copy),
        ]
        for ask in asks * 20:
            assert ask().status_code == 200, "nobody waits for those names"
        assert proxy.agents()["once"]["status"] == "online"
