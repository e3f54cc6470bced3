"""Requests wait in the balancer while all agents are busy: bounded, fair, and out at once when they leave."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_balancer.simulator import SimulatedOllama
from tests.e2e.harness import PATIENCE, Hosts, Proxy, running_proxy, wait_until


class Sent(threading.Thread):
    """A request on its way."""

    def __init__(
        self, proxy: Proxy, prompt: str, model: str = "llama3.2", *, address: str | None = None, **headers: str
    ) -> None:
        super().__init__(daemon=True)
        self.transport = httpx.HTTPTransport(local_address=address)
        self.proxy, self.body, self.headers = proxy, {"model": model, "prompt": prompt, "stream": False}, headers
        self.response: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        # One that a test leaves behind is cut when the proxy ends.
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.Client(base_url=self.proxy.url, transport=self.transport, timeout=PATIENCE) as client,
        ):
            self.response = client.post("/api/generate", json=self.body, headers=self.headers)

    @property
    def answer(self) -> httpx.Response:
        self.join(PATIENCE)
        assert self.response is not None, "no answer"
        return self.response


@contextmanager
def busy(tmp_path: Path, hosts: Hosts, *arguments: str) -> Iterator[tuple[Proxy, SimulatedOllama, Sent]]:
    """One host with one slot a model, which is taken by a request that does not end before the fault does."""
    host = hosts.start("one", "llama3.2", "qwen3")
    options = ("--set", f"balancer_agents=one={host.url}", "--set", "balancer_slots=1")
    with running_proxy(tmp_path, *options, *arguments) as proxy:
        proxy.wait_online("one")
        host.faults.hang = True
        first = Sent(proxy, "first")
        wait_until(lambda: host.in_flight == 1, "the host has the first request")
        yield proxy, host, first
        host.faults.hang = False


def state(proxy: Proxy) -> dict[str, Any]:
    value: dict[str, Any] = proxy.http.get("/api/balancer").json()
    return value


def in_line(proxy: Proxy, count: int) -> None:
    wait_until(lambda: state(proxy)["waiting"] == count, f"{count} requests wait")


def prompts(host: SimulatedOllama) -> list[str]:
    return [json.loads(request.body)["prompt"] for request in host.requests if request.inference]


def test_no_agent_gets_more_than_its_slots_and_the_rest_wait_their_turn(tmp_path: Path, hosts: Hosts) -> None:
    with busy(tmp_path, hosts) as (proxy, host, first):
        sent = []
        for number, key in enumerate(("a", "a", "a", "b"), 1):
            sent.append(Sent(proxy, f"{key}{number}", authorization=f"Bearer {key}"))
            in_line(proxy, number)
        shown = state(proxy)["line"]
        assert shown["length"] == 4
        assert shown["oldest"] >= 0
        assert shown["models"] == {"llama3.2:latest": 4}
        assert sorted(shown["clients"].values()) == [1, 3]
        assert not any("Bearer" in client or client in "ab" for client in shown["clients"]), "keys are not shown"
        assert proxy.agents()["one"]["in_flight"] == host.in_flight == 1
        assert proxy.agents()["one"]["slots"] == 1
        host.faults.hang = False
        for request in (first, *sent):
            assert request.answer.status_code == 200
            assert request.answer.headers["X-Balancer-Attempts"] == "1"
        assert prompts(host) == ["first", "a1", "b4", "a2", "a3"], "clients take turns"
        assert state(proxy)["line"] == {
            "length": 0,
            "oldest": None,
            "priorities": {"interactive": 0, "normal": 0, "batch": 0},
            "models": {},
            "clients": {},
        }


def has_address(address: str) -> bool:
    with contextlib.suppress(OSError), socket.socket() as s:
        s.bind((address, 0))
        return True
    return False


@pytest.mark.skipif(not has_address("127.0.0.2"), reason="this machine has one address only")
def test_a_fresh_key_for_each_request_buys_no_turns(tmp_path: Path, hosts: Hosts) -> None:
    with busy(tmp_path, hosts) as (proxy, host, _):
        sent = []
        for number in range(1, 5):
            sent.append(Sent(proxy, f"fresh {number}", authorization=f"Bearer {number}"))
            in_line(proxy, number)
        for number in range(5, 7):
            sent.append(Sent(proxy, f"honest {number}", address="127.0.0.2"))
            in_line(proxy, number)
        host.faults.hang = False
        for request in sent:
            assert request.answer.status_code == 200
        assert prompts(host)[1:5] == ["fresh 1", "honest 5", "fresh 2", "honest 6"]


def test_a_model_nobody_is_busy_with_does_not_wait(tmp_path: Path, hosts: Hosts) -> None:
    with busy(tmp_path, hosts, "--set", "balancer_mode=metrics") as (proxy, host, _):
        waiting = [Sent(proxy, "w") for _ in range(3)]
        in_line(proxy, 3)
        other = Sent(proxy, "other", "qwen3")
        wait_until(lambda: host.in_flight == 2, "the host has the other model's request")
        shown = proxy.http.post("/api/show", json={"model": "llama3.2"})
        assert shown.status_code == 200, "what runs no model needs no slot"
        host.faults.hang = False
        assert other.answer.status_code == 200
        assert {request.answer.status_code for request in waiting} == {200}


def test_a_full_line_is_a_503_that_says_when_to_try_again(tmp_path: Path, hosts: Hosts) -> None:
    with busy(tmp_path, hosts, "--set", "balancer_queue_size=1") as (proxy, _, _first):
        Sent(proxy, "waits")
        in_line(proxy, 1)
        for path, words in (("/api/generate", ["error"]), ("/v1/chat/completions", ["error", "message"])):
            refused = proxy.http.post(path, json={"model": "llama3.2", "prompt": "x", "messages": []})
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 1
            message = refused.json()
            for word in words:
                message = message[word]
            assert "balancer_queue_size" in message


def test_who_has_waited_too_long_gets_a_503(tmp_path: Path, hosts: Hosts) -> None:
    with busy(tmp_path, hosts, "--set", "balancer_queue_timeout=1") as (proxy, host, _):
        late = Sent(proxy, "late").answer
        assert late.status_code == 503
        assert "balancer_queue_timeout" in late.json()["error"]
        assert int(late.headers["Retry-After"]) >= 1
        assert state(proxy)["waiting"] == 0
        assert prompts(host) == ["first"]


def test_who_leaves_is_out_of_the_line_at_once(tmp_path: Path, hosts: Hosts) -> None:
    with busy(tmp_path, hosts) as (proxy, host, first):
        body = b'{"model": "llama3.2", "prompt": "gone"}'
        head = b"POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.create_connection(("127.0.0.1", proxy.port)) as leaver:
            leaver.sendall(head + body)
            in_line(proxy, 1)
            stays = Sent(proxy, "stays")
            in_line(proxy, 2)
        in_line(proxy, 1)
        wait_until(lambda: proxy.introspect()["contexts"] == 2, "nothing is left of it")
        host.faults.hang = False
        assert first.answer.status_code == stays.answer.status_code == 200
        assert prompts(host) == ["first", "stays"]


def test_who_waits_for_agents_that_are_gone_is_told(tmp_path: Path, hosts: Hosts) -> None:
    with busy(tmp_path, hosts) as (proxy, host, first):
        waits = Sent(proxy, "waits")
        pinned = Sent(proxy, "pinned", **{"X-Balancer-Agent": "one"})
        in_line(proxy, 2)
        proxy.report("one", ollama_ok=False)
        assert waits.answer.status_code == pinned.answer.status_code == 503
        assert "offline" in waits.answer.json()["error"]
        assert "offline" in pinned.answer.json()["error"]
        assert state(proxy)["waiting"] == 0
        host.faults.hang = False
        assert first.answer.status_code == 200, "it had been sent, and the host does answer"


def test_an_agent_that_is_drained_is_not_waited_for(tmp_path: Path, hosts: Hosts) -> None:
    with busy(tmp_path, hosts) as (proxy, host, first):
        waits = Sent(proxy, "waits")
        in_line(proxy, 1)
        proxy.control("POST", "/api/agents/one/drain")
        assert waits.answer.status_code == 503
        host.faults.hang = False
        assert first.answer.status_code == 200, "what runs there finishes"


def test_an_agent_that_comes_takes_over_who_waits(tmp_path: Path, hosts: Hosts) -> None:
    with busy(tmp_path, hosts) as (proxy, _, _first):
        waits = Sent(proxy, "waits")
        in_line(proxy, 1)
        second = hosts.start("two")
        proxy.register("two", second.url)
        assert waits.answer.headers["X-Balancer-Agent"] == "two"


KILLING = """
from mitmproxy import http
from ollama_balancer.mitm.addons import the_addon


class Killing:
    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if flow.request.path == "/kill-who-waits":
            for context in list(the_addon().balancer.gateway.live):
                if context.ticket is not None:
                    context.handle.kill()
            flow.response = http.Response.make(204)


addons = [Killing()]
"""


def test_a_flow_that_a_person_kills_leaves_the_line(tmp_path: Path, hosts: Hosts) -> None:
    script = tmp_path / "killing.py"
    script.write_text(KILLING)
    with busy(tmp_path, hosts, "-s", str(script)) as (proxy, host, first):
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as victim:
            body = b'{"model": "llama3.2", "prompt": "victim"}'
            victim.sendall(b"POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            in_line(proxy, 1)
            assert proxy.http.get("/kill-who-waits").status_code == 204
            in_line(proxy, 0)
            assert victim.recv(1000) == b"", "its connection is closed"
        host.faults.hang = False
        assert first.answer.status_code == 200
        assert prompts(host) == ["first"]


@pytest.mark.parametrize("mode", ["roundrobin", "metrics", "least_requests"])
def test_what_a_host_reports_of_its_slots_is_kept_in_every_mode(tmp_path: Path, hosts: Hosts, mode: str) -> None:
    a, b = hosts.start("a"), hosts.start("b")
    agents = f"balancer_agents=a={a.url},b={b.url}"
    with running_proxy(tmp_path, "--set", agents, "--set", f"balancer_mode={mode}") as proxy:
        proxy.wait_online("a", "b")
        proxy.report("a", num_parallel=2, models=["llama3.2"])
        proxy.report("b", num_parallel=3, models=["llama3.2"])
        for host in (a, b):
            host.faults.hang = True
        sent = [Sent(proxy, str(n)) for n in range(8)]
        in_line(proxy, 3)
        wait_until(lambda: (a.in_flight, b.in_flight) == (2, 3), "each has as many as it runs")
        for host in (a, b):
            host.faults.hang = False
        assert {request.answer.status_code for request in sent} == {200}
