"""Clients that do not take their answers give their slots back."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import PATIENCE, Hosts, Proxy, running_proxy, wait_until
from tests.e2e.test_http2_limits import FastHost, without_windows


@pytest.fixture
def fast(hosts: Hosts) -> Iterator[FastHost]:
    host = FastHost(hosts)
    yield host
    host.host.stop()


@contextlib.contextmanager
def running(tmp_path: Path, fast: FastHost, *more: str) -> Iterator[Proxy]:
    script = tmp_path / "script.py"
    script.write_text("from ollama_balancer.gateway import stalled_clients\nstalled_clients.SEND_SECONDS = 1.5\n")
    options = ("--set", f"balancer_agents=fast={fast.url}", "--set", "balancer_slots=1", "-s", str(script), *more)
    with running_proxy(tmp_path, *options) as proxy:
        proxy.wait_online("fast")
        yield proxy


def asks(proxy: Proxy, host: FastHost) -> socket.socket:
    """A client of which nobody reads."""
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)
    body = json.dumps({"model": "m", "prompt": "x"}).encode()
    client.sendall(
        b"POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    wait_until(lambda: host.sent, "it is answered")
    return client


@pytest.mark.parametrize("relay", ["true", "false"])
def test_who_takes_nothing_is_cut_and_the_next_in_line_is_served(
    tmp_path: Path, hosts: Hosts, fast: FastHost, relay: str
) -> None:
    with running(tmp_path, fast, "--set", f"balancer_relay={relay}") as proxy:
        client = asks(proxy, fast)
        fast.most = 1
        waiting = proxy.http.post("/api/generate", json={"model": "m", "prompt": "x"})
        assert waiting.text.endswith('"done":true}\n')
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1 << 20):
                pass
        client.close()
        stats = wait_until(
            lambda: (a := proxy.agents()["fast"])["in_flight"] == 0 and a["stats"], "all are over and counted"
        )
        assert (stats["cancelled"], stats["failed"], stats["succeeded"]) == (1, 0, 1)
        assert "127.0.0.1: the client has read nothing of its answer for 1.5 s; disconnected." in proxy.log


def test_a_stream_of_http2_that_is_not_taken_is_cut_and_the_others_go_on(
    tmp_path: Path, hosts: Hosts, fast: FastHost
) -> None:
    with running(tmp_path, fast) as proxy:
        client = without_windows(proxy)
        client.send("/api/generate", {"model": "m", "prompt": "x"})
        wait_until(lambda: fast.sent, "it is answered")
        fast.most = 1
        waiting = proxy.http.post("/api/generate", json={"model": "m", "prompt": "x"})
        assert waiting.text.endswith('"done":true}\n')
        wait_until(lambda: "; disconnected." in proxy.log, "it is cut")
        client.send("/api/generate", {"model": "nobody-has-it", "prompt": "x"})
        assert client.status() == "404", "the connection's other streams go on"
        wait_until(lambda: proxy.agents()["fast"]["in_flight"] == 0, "all are over")
        client.close()


def test_an_answer_of_the_control_api_that_is_not_taken_is_cut(tmp_path: Path, hosts: Hosts, fast: FastHost) -> None:
    with running(tmp_path, fast) as proxy:
        client = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b"GET /dashboard HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: identity\r\n\r\n"
        with contextlib.suppress(TimeoutError, ConnectionError):
            client.settimeout(1)
            for _ in range(10_000):  # until the balancer reads no further
                client.sendall(request)
        wait_until(lambda: "; disconnected." in proxy.log, "it is cut")
        client.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_no_more_than_one_answer_is_kept_for_who_asks_ahead_and_does_not_read(tmp_path: Path, tls: bool) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: identity\r\n\r\n"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with running_proxy(tmp_path) as proxy:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.settimeout(PATIENCE)
        plain.connect(("127.0.0.1", proxy.port))
        with context.wrap_socket(plain) if tls else plain as client:
            client.sendall(request * 1500)
            wait_until(lambda: proxy.introspect()["unsent"], "the connection is full")
            unsent = max(proxy.introspect()["unsent"] for _ in range(20))
            assert unsent < 2 * len(proxy.http.get("/metrics").content)
            answered, left = 0, b""  # all that it has asked for comes when it reads
            while answered < 1500:
                left += client.recv(1 << 20)
                answered += left.count(b"HTTP/1.1 200 OK\r\n")
                left = left[-16:]
