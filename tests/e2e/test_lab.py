"""Traffic of a real balancer, saved by mitmproxy and replayed in the lab."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ollama_balancer.core.policies import POLICIES
from ollama_balancer.simulator import SimulatedModel, SimulatedOllama
from tests.e2e.harness import PATIENCE, QUICK, Hosts, environment, running_proxy

MESSAGES = [{"role": "user", "content": "why is the sky blue? " * 20}]
TURNS = [*MESSAGES, {"role": "assistant", "content": "it scatters"}, {"role": "user", "content": "and at dusk?"}]

REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/api/generate", {"prompt": "why?"}),
    ("/api/generate", {"prompt": "why not?", "stream": False}),
    ("/api/chat", {"messages": MESSAGES}),
    ("/api/chat", {"messages": TURNS, "stream": False}),
    ("/v1/chat/completions", {"messages": MESSAGES, "stream": True}),
    ("/v1/chat/completions", {"messages": TURNS}),
    ("/v1/completions", {"prompt": "once"}),
    ("/v1/responses", {"input": "why?", "stream": True}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 20, "stream": True}),
)
"""Ways to ask for text; each is asked of two models."""

EMBEDDINGS = (("/api/embed", {"input": "a text"}), ("/v1/embeddings", {"input": ["a text", "another"]}))


def lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ollama_balancer.lab", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment(),
        check=False,
    )


def start(hosts: Hosts, name: str) -> SimulatedOllama:
    models = [SimulatedModel("one"), SimulatedModel("two"), SimulatedModel("vectors", embedding=True)]
    host = SimulatedOllama(models=models, timing=QUICK, name=name)
    hosts.run(host.start())
    hosts.all.append(host)
    return host


def test_saved_traffic_is_replayed_in_every_mode(tmp_path: Path, hosts: Hosts) -> None:
    saved = tmp_path / "saved"
    agents = ",".join(f"{name}={start(hosts, name).url}" for name in ("gpu-1", "gpu-2"))
    options = ("--set", f"balancer_agents={agents}", "--set", "balancer_mode=roundrobin")
    with running_proxy(tmp_path, *options, "-w", str(saved)) as proxy:
        proxy.wait_online("gpu-1", "gpu-2")
        for model, requests in (("one", REQUESTS), ("two", REQUESTS), ("vectors", EMBEDDINGS)):
            for path, body in requests:
                response = proxy.http.post(path, json={"model": model, **body})
                assert response.status_code == 200, response.text
        assert proxy.generate("no-such-model").status_code == 404
        served = {name: agent["stats"]["succeeded"] for name, agent in proxy.agents().items()}
    asked = 2 * len(REQUESTS) + len(EMBEDDINGS)
    assert sum(served.values()) == asked

    told = lab(str(saved), "--json", "--fits", "4")
    assert (told.returncode, told.stderr) == (0, "")
    report = json.loads(told.stdout)
    assert (report["read"]["requests"], report["read"]["modes"]) == (asked, {"roundrobin": asked})
    assert (report["read"]["refused"], report["read"]["odd"], report["read"]["clients"]) == (1, 0, 1)
    assert report["read"]["conversations"] < asked
    assert report["learned"]["decode"] >= asked / 2
    assert {host["name"]: sorted(host["models"]) for host in report["hosts"]} == {
        name: ["one:latest", "two:latest", "vectors:latest"] for name in served
    }
    recorded = report["recorded"]
    assert recorded["shares"] == pytest.approx({name: 100 * count / asked for name, count in served.items()})
    assert list(report["modes"]) == list(POLICIES)
    for figures in (recorded, *report["modes"].values()):
        assert (figures["requests"], figures["served"]) == (asked, asked)
        assert 0 < figures["goodput"] <= 100
        assert sum(figures["shares"].values()) == pytest.approx(100)
        assert figures["shares"].keys() <= served.keys()
        assert 0 <= figures["first_token"]["p50"] <= figures["first_token"]["p99"] <= figures["total"]["p99"]

    tables = lab(str(saved), "--modes", "adaptive", "--load", "2", "--slots", "1")
    assert tables.returncode == 0, tables.stderr
    assert "recorded (roundrobin)" in tables.stdout
    assert "with 2 times as many requests per second" in tables.stdout
    assert "least_requests" not in tables.stdout


def test_a_file_without_flows_ends_the_program_with_a_line_that_says_what_to_do(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    told = lab(str(empty))
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(f"lab: {empty}: contains no flows")
    assert told.stderr.count("\n") == 1
