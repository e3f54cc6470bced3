"""A host that falls silent in the middle of an answer: the client is told, and the slot is free again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import ROOT, Hosts, Proxy, environment, running_proxy, wait_until
from tests.e2e.scripted import JSON, NDJSON, OPENAI_TEXT, SSE, TEXT, ScriptedHost, chunked

PULLING = b'{"status":"pulling manifest"}\n'
ANSWERS = {
    "/api/generate": NDJSON + chunked(TEXT),
    "/v1/chat/completions": SSE + chunked(OPENAI_TEXT),
    "/api/chat": JSON + chunked(b'{"model":"m","mess'),
    "/api/pull": NDJSON + chunked(PULLING),
    "/api/show": b"",
}
BODIES = {
    "/api/generate": {"model": "m", "prompt": "x"},
    "/v1/chat/completions": {"model": "m", "messages": [], "stream": True},
    "/api/chat": {"model": "m", "messages": [], "stream": False},
    "/api/pull": {"model": "m"},
    "/api/show": {"model": "m"},
}


@pytest.fixture
def silent(hosts: Hosts) -> Iterator[ScriptedHost]:
    host = ScriptedHost(hosts, ANSWERS)
    yield host
    host.stop()


def ask(proxy: Proxy, *paths: str) -> dict[str, httpx.Response]:
    """The whole answers to requests that are sent at the same time."""
    with ThreadPoolExecutor(len(paths)) as pool:
        return dict(zip(paths, pool.map(lambda path: proxy.http.post(path, json=BODIES[path]), paths), strict=True))


def check_error(answer: httpx.Response, reason: str) -> None:
    """The last event is an error in the stream's own format, or the answer is a clean error."""
    path = answer.request.url.path
    if path == "/api/generate":
        assert answer.content.startswith(TEXT)
        assert reason in json.loads(answer.content.splitlines()[-1])["error"]
    elif path == "/v1/chat/completions":
        assert answer.content.startswith(OPENAI_TEXT)
        assert reason in json.loads(answer.content.split(b"data: ")[-1])["error"]["message"]
    elif path == "/api/pull":
        assert answer.content.startswith(PULLING)
        assert "error" in json.loads(answer.content.splitlines()[-1])
    else:
        assert answer.status_code == 502
        assert reason in answer.json()["error"]


@pytest.mark.usefixtures("either_way")
def test_what_runs_on_a_host_that_goes_offline_ends_with_an_error(
    tmp_path: Path, hosts: Hosts, silent: ScriptedHost
) -> None:
    with (
        running_proxy(tmp_path, "--set", f"balancer_agents=one={silent.url}", "--set", "balancer_slots=8") as proxy,
        ThreadPoolExecutor() as pool,
    ):
        proxy.wait_online("one")
        proxy.report("one")
        answers = pool.submit(ask, proxy, *ANSWERS)
        wait_until(lambda: len(silent.asked) == len(ANSWERS), "all run")
        silent.well.clear()
        proxy.report("one", ollama_ok=False)
        for answer in answers.result().values():
            check_error(answer, "it went offline")
        wait_until(lambda: proxy.introspect()["contexts"] == 0, "nothing is left")
        agent = proxy.agents()["one"]
        assert agent["in_flight"] == 0
        assert agent["stats"]["failed"] == len(ANSWERS)
        wait_until(lambda: silent.left == len(ANSWERS), "the balancer has closed its connections")


def test_a_pull_on_two_hosts_goes_on_without_the_one_that_goes_offline(
    tmp_path: Path, hosts: Hosts, silent: ScriptedHost
) -> None:
    good = hosts.start("good", "m")
    agents = f"balancer_agents=gone={silent.url},good={good.url}"
    with running_proxy(tmp_path, "--set", agents) as proxy, ThreadPoolExecutor() as pool:
        proxy.wait_online("gone", "good")
        proxy.report("gone")
        answer = pool.submit(lambda: proxy.http.post("/api/pull", json={"model": "m"}))
        wait_until(lambda: silent.asked == ["/api/pull"], "it runs")
        silent.well.clear()
        proxy.report("gone", ollama_ok=False)
        lines = [json.loads(line) for line in answer.result().content.splitlines()]
        assert {"status": "done", "agent": "good"} in lines
        assert lines[-1]["error"].startswith("gone: it went offline")
        assert "succeeded on 1 other agent" in lines[-1]["error"]
        wait_until(lambda: proxy.introspect()["contexts"] == 0, "nothing is left")
        assert {agent["in_flight"] for agent in proxy.agents().values()} == {0}


@pytest.mark.usefixtures("either_way")
def test_a_runner_that_freezes_behind_a_healthy_server_is_found_out(
    tmp_path: Path, hosts: Hosts, silent: ScriptedHost
) -> None:
    options = ("--set", "balancer_stream_idle_timeout=1", "--set", "balancer_slots=8")
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={silent.url}", *options) as proxy:
        proxy.wait_online("one")
        for answer in ask(proxy, "/api/generate", "/v1/chat/completions", "/api/chat").values():
            check_error(answer, "no data for 1 s")
        wait_until(lambda: proxy.introspect()["contexts"] == 0, "nothing is left")
        agent = proxy.agents()["one"]
        assert agent["in_flight"] == 0
        assert agent["stats"]["failed"] == 3
        assert agent["strikes"] == 3


def test_a_host_without_power_costs_a_stream_seconds_and_comes_back(tmp_path: Path) -> None:
    arguments = ["--load", "0", "--decode-rate", "20", "--output-tokens", "1000000"]
    program = [sys.executable, "-m", "ollama_balancer.simulator", *arguments]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT) as process:
        assert process.stdout
        url = json.loads(process.stdout.readline())["url"]
        try:
            with running_proxy(tmp_path, "--set", f"balancer_agents=one={url}") as proxy:
                proxy.wait_online("one")
                with proxy.http.stream("POST", "/api/generate", json={"model": "llama3.2", "prompt": "x"}) as answer:
                    lines = answer.iter_lines()
                    next(lines)
                    process.send_signal(signal.SIGSTOP)
                    assert "it went offline" in json.loads(list(lines)[-1])["error"]
                agent = proxy.agents()["one"]
                assert (agent["status"], agent["in_flight"]) == ("offline", 0)
                process.send_signal(signal.SIGCONT)
                proxy.wait_online("one")
        finally:
            process.kill()
