"""An agent that fails before its first byte is replaced; one that fails later is reported in the stream's own words."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ollama_balancer.simulator import SimulatedOllama
from tests.e2e.harness import Hosts, Proxy, free_port, running_proxy, silent_listener, wait_until


@contextmanager
def two_agents(
    tmp_path: Path, hosts: Hosts, *arguments: str
) -> Iterator[tuple[Proxy, SimulatedOllama, SimulatedOllama]]:
    """`bad` is preferred: its score is the lower."""
    bad, good = hosts.start("bad"), hosts.start("good")
    agents = f"balancer_agents=bad={bad.url},good={good.url}"
    with running_proxy(tmp_path, "--set", agents, "--set", "balancer_mode=metrics", *arguments) as proxy:
        proxy.wait_online("bad", "good")
        proxy.report("bad", cpu=1)
        proxy.report("good", cpu=60)
        assert proxy.generate().headers["X-Balancer-Agent"] == "bad"
        yield proxy, bad, good


def test_a_killed_host_is_survived_and_comes_back(tmp_path: Path, hosts: Hosts) -> None:
    with two_agents(tmp_path, hosts) as (proxy, bad, _):
        hosts.kill(bad)
        response = proxy.generate()
        assert response.status_code == 200
        assert response.headers["X-Balancer-Agent"] == "good"
        assert response.headers["X-Balancer-Attempts"] == "2"
        assert proxy.agents()["bad"]["status"] == "unreachable"
        assert proxy.generate().headers["X-Balancer-Attempts"] == "1"
        hosts.restart(bad)
        wait_until(lambda: proxy.agents()["bad"]["status"] == "online", "the agent is back")
        # Over the same client connection that has seen it fail.
        wait_until(lambda: proxy.generate().headers["X-Balancer-Agent"] == "bad", "the agent serves again")


@pytest.mark.parametrize("fault", ["reset_before_head", "close_before_head", "status"])
def test_an_agent_that_fails_before_its_first_byte_is_replaced(tmp_path: Path, hosts: Hosts, fault: str) -> None:
    with two_agents(tmp_path, hosts) as (proxy, bad, good):
        setattr(bad.faults, fault, 502 if fault == "status" else True)
        with httpx.Client(base_url=proxy.url, trust_env=False, verify=False, timeout=30) as fresh:
            for client in (proxy.http, fresh):
                response = client.post("/api/generate", json={"model": "llama3.2", "prompt": "hi"})
                assert response.status_code == 200, response.text
                assert response.headers["X-Balancer-Agent"] == "good"
                assert response.headers["X-Balancer-Attempts"] == "2"
                assert json.loads(response.text.splitlines()[-1])["done"] is True
        agents = proxy.agents()
        assert agents["bad"]["stats"]["failed"] == 2
        assert agents["bad"]["in_flight"] == agents["good"]["in_flight"] == 0
        assert good.counts["succeeded"] == 2


def test_an_unreachable_host_costs_the_connect_timeout_once(tmp_path: Path, hosts: Hosts) -> None:
    good, gone = hosts.start("good"), hosts.start("gone")
    agents = f"balancer_agents=gone={gone.url},good={good.url}"
    options = ("--set", agents, "--set", "balancer_connect_timeout=1", "--set", "balancer_mode=metrics")
    with running_proxy(tmp_path, *options) as proxy:
        proxy.wait_online("good", "gone")
        proxy.report("gone", cpu=1, models=["llama3.2"], loaded_models=[])  # from here on it is not probed
        proxy.report("good", cpu=60)
        hosts.kill(gone)
        with silent_listener(port=gone.port):
            response = proxy.generate()
            assert response.status_code == 200
            assert response.headers["X-Balancer-Attempts"] == "2"
            assert "not reached within 1 s" in proxy.log
            shown = proxy.agents()["gone"]
            assert shown["status"] == "unreachable"
            assert f"no firewall blocks TCP port {gone.port}" in shown["reason"]
            assert proxy.generate().headers["X-Balancer-Attempts"] == "1"


def test_when_all_fail_the_client_learns_what_was_tried(tmp_path: Path, hosts: Hosts) -> None:
    with two_agents(tmp_path, hosts) as (proxy, bad, good):
        bad.faults.close_before_head = good.faults.close_before_head = True
        response = proxy.generate()
        assert response.status_code == 502
        assert "bad: " in response.json()["error"]
        assert "good: " in response.json()["error"]
        assert response.headers["X-Balancer-Attempts"] == "2"


def test_when_all_refuse_the_client_gets_the_last_refusal(tmp_path: Path, hosts: Hosts) -> None:
    with two_agents(tmp_path, hosts) as (proxy, bad, good):
        bad.faults.status = good.faults.status = 503
        response = proxy.generate()
        assert response.status_code == 503
        assert response.headers["X-Balancer-Agent"] == "good"
        assert response.headers["X-Balancer-Attempts"] == "2"
        assert "error" in response.json()


def test_no_more_than_balancer_retries_other_agents_are_tried(tmp_path: Path, hosts: Hosts) -> None:
    with two_agents(tmp_path, hosts, "--set", "balancer_retries=0") as (proxy, bad, good):
        bad.faults.close_before_head = True
        assert proxy.generate().status_code == 502
        assert good.counts["succeeded"] == 0


def test_a_pinned_request_is_not_sent_elsewhere(tmp_path: Path, hosts: Hosts) -> None:
    with two_agents(tmp_path, hosts) as (proxy, bad, _):
        assert proxy.generate(headers={"X-Balancer-Agent": "good"}).headers["X-Balancer-Agent"] == "good"
        bad.faults.close_before_head = True
        assert proxy.generate(headers={"X-Balancer-Agent": "bad"}).status_code == 502
        assert proxy.generate(headers={"X-Balancer-Agent": "nobody"}).status_code == 404
        proxy.control("POST", "/api/agents/good/drain")
        refused = proxy.generate(headers={"X-Balancer-Agent": "good"})
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]


def test_no_first_byte_in_time_is_an_error_that_says_so(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("slow")
    agents = f"balancer_agents=slow={host.url}"
    with running_proxy(tmp_path, "--set", agents, "--set", "balancer_response_timeout=1") as proxy:
        proxy.wait_online("slow")
        assert proxy.generate().status_code == 200  # a connection to the agent is there and will be used again
        host.faults.hang = True
        response = proxy.generate()
        assert response.status_code == 502
        assert "no first byte within 1 s" in response.json()["error"]
        assert proxy.agents()["slow"]["in_flight"] == 0
        wait_until(lambda: host.in_flight == 0, "the agent's request is cancelled")


@pytest.mark.parametrize("fault", ["cut_after_chunks", "end_without_done_after_chunks"])
@pytest.mark.usefixtures("either_way")
def test_a_stream_that_breaks_off_ends_with_an_error_event(tmp_path: Path, hosts: Hosts, fault: str) -> None:
    with two_agents(tmp_path, hosts) as (proxy, bad, good):
        setattr(bad.faults, fault, 2)
        before = good.counts["succeeded"]
        response = proxy.http.post("/api/generate", json={"model": "llama3.2", "prompt": "hi"})
        lines = [json.loads(line) for line in response.text.splitlines() if line]
        assert "error" in lines[-1]
        assert all("response" in line for line in lines[:-1])
        assert len(lines) == 3
        assert good.counts["succeeded"] == before
        wait_until(lambda: proxy.agents()["bad"]["stats"]["failed"] == 1, "it counts as failed")
        assert proxy.agents()["bad"]["in_flight"] == 0


def test_an_answer_of_known_length_that_breaks_off_is_a_clean_502(tmp_path: Path, hosts: Hosts) -> None:
    with two_agents(tmp_path, hosts) as (proxy, _, _good):
        listener = socket.create_server(("127.0.0.1", 0))
        proxy.register("cutter", f"http://127.0.0.1:{listener.getsockname()[1]}")
        proxy.report("cutter", models=["llama3.2"])

        def cut() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    asked = connection.recv(65536)
                    if b"generate" in asked:
                        connection.sendall(
                            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
                        )
                    elif b"version" in asked:
                        connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"version": "1"}')

        thread = threading.Thread(target=cut, daemon=True)
        thread.start()
        proxy.wait_online("cutter")
        response = proxy.generate(headers={"X-Balancer-Agent": "cutter"})
        assert response.status_code == 502
        assert "cutter" in response.json()["error"]
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)


def test_nobody_online_is_told_at_once_with_retry_after(tmp_path: Path) -> None:
    with running_proxy(tmp_path, "--set", f"balancer_agents=http://127.0.0.1:{free_port()}") as proxy:
        response = proxy.generate()
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) > 0
        assert "1 offline" in response.json()["error"]


RAISING = """
from ollama_balancer.mitm.addons import the_addon

router = the_addon().balancer.gateway.router
real = router.begin


def begin(context, request, reading):
    real(context, request, reading)
    raise RuntimeError("routing is broken")


router.begin = begin
"""


def test_routing_fails_closed(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    script = tmp_path / "raising.py"
    script.write_text(RAISING)
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}", "-s", str(script)) as proxy:
        proxy.wait_online("one")
        response = proxy.generate()
        assert response.status_code == 500
        assert "could not route" in response.json()["error"]
        assert proxy.agents()["one"]["in_flight"] == 0
        assert proxy.introspect()["contexts"] == 0
        assert sum(host.counts.values()) == 0
