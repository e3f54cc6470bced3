"""With few open files to be had, clients that have nothing to say keep nobody out, and no host is blamed."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import ADDON, PATIENCE, Hosts, running_proxy, wait_until
from tests.e2e.test_line import has_address

LIMIT = 200


def limited_addon(folder: Path, soft: int, hard: int) -> Path:
    """The balancer, in a process that may have so many open files."""
    script = folder / "limited.py"
    script.write_text(
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        f"sys.path.insert(0, {str(ADDON.parent)!r})\n"
        "from balancer import addons\n"
    )
    return script


def test_idle_connections_that_come_at_once_take_no_descriptors_of_hosts_or_the_api(
    tmp_path: Path, hosts: Hosts
) -> None:
    host = hosts.start("one")
    addon = limited_addon(tmp_path, LIMIT, LIMIT)
    with (
        running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}", addon=addon) as proxy,
        contextlib.ExitStack() as stack,
    ):
        proxy.wait_online("one")
        assert "Open-file limit: 200, which allows 68 clients at once." in proxy.log
        proxy.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(LIMIT + 20):
                stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=30))
        finally:
            proxy.process.send_signal(signal.SIGCONT)
        for _ in range(5):
            response = proxy.generate()
            assert response.status_code == 200, response.text
            assert proxy.agents()["one"]["status"] == "online"
        assert proxy.introspect()["clients"] <= 68
        assert "Too many open files" not in proxy.log
        assert "Traceback" not in proxy.log


@pytest.mark.skipif(not has_address("127.0.0.2"), reason="this machine has one address only")
def test_clients_that_all_have_requests_running_are_told_that_there_are_too_many(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    addon = limited_addon(tmp_path, LIMIT, LIMIT)
    body = b'{"model":"llama3.2","prompt":"x"}'
    request = b"POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with (
        running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}", addon=addon) as proxy,
        contextlib.ExitStack() as stack,
    ):
        proxy.wait_online("one")
        proxy.http.close()
        proxy.http = httpx.Client(
            base_url=proxy.url, transport=httpx.HTTPTransport(local_address="127.0.0.2"), timeout=PATIENCE
        )
        host.faults.hang = True
        busy = [stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=30)) for _ in range(51)]
        for client in busy:
            client.sendall(request)
        wait_until(lambda: proxy.introspect()["contexts"] == 51, "all requests are there")
        late = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=30))
        answer = late.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503 "), answer
        assert b"too many connections" in answer
        assert proxy.agents()["one"]["status"] == "online", "other addresses have room"
        host.faults.hang = False


def test_the_soft_limit_is_raised_to_the_hard_one(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1024:
        pytest.skip("this process may have few files itself")
    with running_proxy(tmp_path, addon=limited_addon(tmp_path, 256, 1024)) as proxy:
        wait_until(lambda: "Open-file limit: 1024, which allows 448 clients at once." in proxy.log, "it is said")
        assert resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE)[0] == 1024


EXHAUSTING = """
import os
from mitmproxy import http


class Exhausting:
    held = []

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if flow.request.path == "/exhaust":
            try:
                while True:
                    self.held.append(os.dup(0))
            except OSError:
                pass
        elif flow.request.path == "/release":
            while self.held:
                os.close(self.held.pop())
        else:
            return
        flow.response = http.Response.make(204)


addons = [Exhausting()]
"""


def test_no_host_is_blamed_where_this_machine_has_no_descriptor_left(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    script = tmp_path / "exhausting.py"
    script.write_text(EXHAUSTING)
    addon = limited_addon(tmp_path, LIMIT, LIMIT)
    options = ("--set", f"balancer_agents=one={host.url}", "-s", str(script))
    with running_proxy(tmp_path, *options, addon=addon) as proxy:
        proxy.wait_online("one")
        copy = {"source": "llama3.2", "destination": "other"}
        assert proxy.http.post("/api/copy", json=copy).status_code == 200  # by this, all that it needs is loaded
        assert proxy.http.get("/exhaust").status_code == 204
        for path in ("/api/generate", "/api/show"):
            answer = proxy.http.post(path, json={"model": "llama3.2", "prompt": "x"})
            assert answer.status_code == 503
            assert "Retry-After" in answer.headers
            assert "the balancer cannot open a connection: [Errno 24] Too many open files" in answer.json()["error"]
        answer = proxy.http.post("/api/copy", json=copy)
        assert answer.json()["error"] == "one: the balancer cannot open a connection"
        answer = proxy.http.post(f"/api/blobs/sha256:{'0' * 64}", content=b"x")
        assert answer.json()["error"] == "one: the balancer cannot open a connection"
        agent = proxy.agents()["one"]
        assert (agent["status"], agent["strikes"], agent["in_flight"]) == ("online", 0, 0)
        assert proxy.http.get("/release").status_code == 204
        assert proxy.generate().status_code == 200
        assert ") is offline" not in proxy.log
        assert "Traceback" not in proxy.log
