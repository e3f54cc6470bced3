"""Hosts that fail or fall silent are found out by their requests, left alone, and tried again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_balancer.simulator import SimulatedOllama, Timing
from tests.e2e.harness import QUICK, Hosts, Proxy, running_proxy, wait_until

IMPATIENT = """
from ollama_balancer.core import health, liveness
from ollama_balancer.gateway import watchdog
from ollama_balancer.hosts import prober as probing
from ollama_balancer.mitm import lifecycle

lifecycle.WATCH_SECONDS = 0.05
watchdog.SILENCE = 0.5
watchdog.RECHECK_SECONDS = 0.1
health.FIRST_EJECTION = 1.0
liveness.PROBE_GRACE = 1.0
probing.INTERVAL = 0.2
probing.ALIVE_TIMEOUT = 0.3
"""
"""The same with shorter times."""


@contextmanager
def pair(
    tmp_path: Path, hosts: Hosts, *, impatient: bool = True, timing: Timing = QUICK
) -> Iterator[tuple[Proxy, SimulatedOllama, SimulatedOllama]]:
    """`bad` is preferred: its score is the lower."""
    bad, good = hosts.start("bad", timing=timing), hosts.start("good")
    script = tmp_path / "impatient.py"
    script.write_text(IMPATIENT if impatient else "")
    agents = f"balancer_agents=bad={bad.url},good={good.url}"
    more = ("balancer_connect_timeout=1", "balancer_mode=metrics", "balancer_stale_after=600")
    options = ("--set", agents, *(word for each in more for word in ("--set", each)))
    with running_proxy(tmp_path, "-s", str(script), *options) as proxy:
        proxy.wait_online("bad", "good")
        # With what is in memory, so that they are not probed, which on a busy machine would be late too often.
        proxy.report("bad", cpu=1, loaded_models=[])
        proxy.report("good", cpu=60, loaded_models=[])
        yield proxy, bad, good


def ask(proxy: Proxy, **fields: Any) -> httpx.Response:
    """A streamed request, read to its end."""
    return proxy.http.post("/api/generate", json={"model": "llama3.2", "prompt": "hi", **fields})


def assert_whole(response: httpx.Response) -> None:
    assert response.status_code == 200, response.text
    assert json.loads(response.text.splitlines()[-1])["done"] is True


def status(proxy: Proxy, name: str = "bad") -> object:
    return proxy.agents()[name]["status"]


def test_a_host_that_fails_fast_is_ejected_and_comes_back(tmp_path: Path, hosts: Hosts) -> None:
    with pair(tmp_path, hosts) as (proxy, bad, good):
        bad.faults.status = 502
        for strikes in (1, 2, 3):
            response = ask(proxy)
            assert_whole(response)
            assert response.headers["X-Balancer-Attempts"] == "2"
            assert proxy.agents()["bad"]["strikes"] == strikes
        shown = proxy.agents()["bad"]
        assert (shown["status"], shown["reason"]) == ("ejected", "status 502")
        assert proxy.http.get("/api/balancer").json()["agents"]["ejected"] == 1
        refused = proxy.generate(headers={"X-Balancer-Agent": "bad"})
        assert refused.status_code == 503
        assert "ejected" in refused.json()["error"]
        bad.faults.status = None
        wait_until(lambda: ask(proxy).headers["X-Balancer-Agent"] == "bad", "it is tried again and serves")
        assert status(proxy) == "online"
        assert proxy.log.count("Agent bad is ejected") == 1
        assert proxy.log.count("Agent bad is back, in slow start") == 1
        assert good.counts["failed"] == 0


def test_a_return_that_fails_is_one_request_s_second_attempt_and_doubles_the_time(tmp_path: Path, hosts: Hosts) -> None:
    with pair(tmp_path, hosts) as (proxy, bad, _):
        bad.faults.status = 502
        for _ in range(3):
            assert_whole(ask(proxy))
        assert status(proxy) == "ejected"
        tried = bad.counts["failed"]

        def tried_again() -> bool:
            assert_whole(ask(proxy))
            return bad.counts["failed"] > tried

        wait_until(tried_again, "it is tried again")
        assert bad.counts["failed"] == tried + 1
        assert "ejected for 2 s: the half-open probe failed" in proxy.log
        assert status(proxy) == "ejected"


@pytest.mark.parametrize("stream", [True, False])
def test_a_crashed_runner_is_the_host_s_failure_and_another_500_the_caller_s(
    tmp_path: Path, hosts: Hosts, stream: bool
) -> None:
    with pair(tmp_path, hosts) as (proxy, bad, _):
        bad.faults.error_event_after_chunks = 0
        response = ask(proxy, stream=stream)
        assert_whole(response)
        assert response.headers["X-Balancer-Agent"] == "good"
        assert response.headers["X-Balancer-Attempts"] == "2"
        bad.faults.error_event_after_chunks = None
        bad.faults.status = 500
        response = ask(proxy, stream=stream)
        assert response.status_code == 500
        assert response.headers["X-Balancer-Agent"] == "bad"
        assert response.headers["X-Balancer-Attempts"] == "1"
        assert "error" in response.json()
        assert proxy.agents()["bad"]["strikes"] == 1


def test_a_frozen_runner_is_found_out_by_its_requests(tmp_path: Path, hosts: Hosts) -> None:
    with pair(tmp_path, hosts) as (proxy, bad, _):
        assert ask(proxy).headers["X-Balancer-Agent"] == "bad"
        bad.faults.hang = True
        for _ in range(3):
            response = ask(proxy)
            assert_whole(response)
            assert response.headers["X-Balancer-Agent"] == "good"
            assert response.headers["X-Balancer-Attempts"] == "2"
        shown = proxy.agents()["bad"]
        assert shown["status"] == "ejected"
        assert "although the model is loaded" in shown["reason"]
        wait_until(lambda: bad.in_flight == 0, "the host hears that nobody waits")
        assert ask(proxy).headers["X-Balancer-Attempts"] == "1"


def test_a_cold_load_is_no_failure_however_long_it_takes(tmp_path: Path, hosts: Hosts) -> None:
    slow_to_load = Timing(load=2.5, prefill_rate=1e6, decode_rate=1000, output_tokens=8)
    with pair(tmp_path, hosts, timing=slow_to_load) as (proxy, bad, _):
        response = ask(proxy)  # silent for five times the time after which silence is suspect
        assert_whole(response)
        assert response.headers["X-Balancer-Agent"] == "bad"
        assert response.headers["X-Balancer-Attempts"] == "1"
        assert bad.counts == {"succeeded": 1}


def test_a_long_prompt_is_given_its_time(tmp_path: Path, hosts: Hosts) -> None:
    slow_to_read = Timing(load=0.01, prefill_rate=20, decode_rate=1000, output_tokens=8)
    with pair(tmp_path, hosts, timing=slow_to_read) as (proxy, _, _good):
        assert ask(proxy).headers["X-Balancer-Agent"] == "bad"
        response = ask(proxy, prompt="word " * 40)
        assert_whole(response)
        assert response.headers["X-Balancer-Agent"] == "bad"


def test_a_host_that_hangs_altogether_is_offline_and_its_request_is_served_elsewhere(
    tmp_path: Path, hosts: Hosts
) -> None:
    with pair(tmp_path, hosts) as (proxy, _, good):
        stuck = hosts.start("stuck")
        proxy.register("stuck", stuck.url)  # without a report: it is probed
        proxy.wait_online("stuck")
        assert proxy.generate(headers={"X-Balancer-Agent": "stuck"}).status_code == 200
        for name in ("bad", "good"):
            proxy.control("POST", f"/api/agents/{name}/drain")
        stuck.faults.hang = stuck.faults.hang_all = True
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(proxy.generate)
            wait_until(lambda: stuck.in_flight == 1, "the host has it")
            proxy.control("POST", "/api/agents/good/resume")
            response = asked.result()
        assert response.status_code == 200
        assert response.headers["X-Balancer-Agent"] == "good"
        assert response.headers["X-Balancer-Attempts"] == "2"
        assert status(proxy, "stuck") == "offline"
        assert good.counts["succeeded"] == 1


def test_what_a_load_has_pushed_out_is_known_at_once(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one", "m", "n", timing=Timing(load=0.01, prefill_rate=1e6, decode_rate=1000, output_tokens=4))
    options = ("--set", f"balancer_agents=one={host.url}", "--set", "balancer_stale_after=600")
    with running_proxy(tmp_path, *options) as proxy:
        proxy.wait_online("one")
        proxy.report("one", loaded_models=[])  # from here on it is not probed for minutes
        for model in ("m", "n"):
            assert proxy.generate(model).status_code == 200
            wait_until(lambda: proxy.agents()["one"]["loaded_models"] == [f"{model}:latest"], f"{model} alone is there")  # noqa: B023
