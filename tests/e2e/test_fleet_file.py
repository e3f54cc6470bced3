"""The fleet file of a real balancer: what it refuses to start with, and what changes while it serves."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ollama_balancer.simulator import Timing
from tests.e2e.harness import PATIENCE, Hosts, Proxy, refused_start, running_proxy, stream_lines, wait_until

STEADY = Timing(load=0, prefill_rate=1e6, decode_rate=35, output_tokens=60, num_parallel=4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "agents:\n  a: {url: http://127.0.0.1:1}\n  b: {slot: 2}\n",
            r"fleet\.yaml:3: agents\.b\.slot: there is no",
        ),
        (
            "agents:\n  z: {url: http://127.0.0.1:1}\n",
            r"fleet\.yaml:2: agents\.z: balancer_agents has an agent",
        ),
        (None, r"fleet\.yaml: it cannot be read \(No such file or directory\)"),
    ],
)
def test_a_bad_file_is_refused_at_the_start(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "fleet.yaml").write_text(text)
    options = ("--set", "balancer_config=fleet.yaml", "--set", "balancer_agents=z=http://127.0.0.1:2")
    status, output = refused_start(tmp_path, *options)
    assert status != 0
    assert re.search(says, output), output
    assert "Traceback" not in output
    assert "Load balancer mode" not in output


def status(proxy: Proxy) -> dict[str, str]:
    return {name: agent["status"] for name, agent in proxy.agents().items()}


def test_a_change_takes_effect_at_once_and_whole_and_what_runs_is_finished(tmp_path: Path, hosts: Hosts) -> None:
    a, b = hosts.start("a", timing=STEADY), hosts.start("b", timing=STEADY)
    found = hosts.start("found")
    port = urlsplit(found.url).port
    path = tmp_path / "fleet.yaml"

    def write(text: str) -> None:
        new = tmp_path / "new"
        new.write_text(text)
        os.replace(new, path)

    write(f"agents:\n  a: {{url: {a.url}, slots: 3}}\noptions: {{demo: 1, retries: 9, mode: roundrobin}}\n")
    given = ("--set", "balancer_config=fleet.yaml", "--set", "balancer_retries=2")
    with running_proxy(tmp_path, *given, cwd=tmp_path) as proxy:
        proxy.wait_online("a", "demo-1")
        assert proxy.agents()["a"]["slots"] == 3
        assert "Fleet file fleet.yaml: 1 agent, 3 options." in proxy.log
        assert (
            "Not used from the fleet file, as --set, config.yaml or a change in mitmproxy wins: retries." in proxy.log
        )
        proxy.control("POST", "/api/agents/demo-1/drain")

        lines: list[dict[str, object]] = []
        body = {"model": "llama3.2", "prompt": "x"}
        reader = threading.Thread(target=lambda: lines.extend(stream_lines(proxy, "/api/generate", body)))
        reader.start()
        wait_until(lambda: a.running == 1, "a serves")
        name = f"dns+http://localhost:{port}"
        options = "options: {demo: 1, mode: least_requests, body_limit: 0}"
        write(f"agents:\n  b: {{url: {b.url}, drained: true}}\n  pool: {{url: {name}, slots: 5}}\n{options}\n")
        wait_until(lambda: list(proxy.agents()) == ["demo-1", "b", "pool-127.0.0.1"], "the file is applied")
        proxy.wait_online("pool-127.0.0.1")
        assert status(proxy)["b"] == "draining"
        assert proxy.agents()["pool-127.0.0.1"]["slots"] == 5
        assert proxy.http.get("/api/balancer").json()["mode"] == "least_requests"
        assert proxy.generate().headers["X-Balancer-Agent"] == "pool-127.0.0.1"
        assert {dict(each.headers)["Host"] for each in found.requests} == {f"localhost:{port}"}
        reader.join(PATIENCE)
        assert lines[-1]["done"] is True
        assert lines[-1]["eval_count"] == len(lines) - 1 > 1

        write(f"agents:\n  c: {{url: {a.url}}}\n  b: {{url: {b.url}, slots: -1}}\n{options}\n")
        refusal = (
            "The fleet file is not applied, and what was applied before stays: fleet.yaml:3: agents.b.slots: -1 is not "
            "accepted; it takes a whole number from 0 to 10000"
        )
        wait_until(lambda: refusal in proxy.log, "it is refused")
        assert list(proxy.agents()) == ["demo-1", "b", "pool-127.0.0.1"]
        write(f"agents:\n  b: {{url: {b.url}}}\n{options}\n")
        wait_until(lambda: status(proxy) == {"demo-1": "draining", "b": "online"}, "b is back")
        assert proxy.generate().headers["X-Balancer-Agent"] == "b"
        audit = (tmp_path / "ollama-balancer-audit.jsonl").read_text()
        assert '"option.set","object":"balancer_mode","value":"least_requests"' in audit.replace(" ", "")
        assert "Traceback" not in proxy.log
