"""A host that is known by two names, of the option and of its reporter, is one host."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ollama_balancer.simulator import Timing
from tests.e2e.harness import TOKEN, Hosts, running_proxy, wait_until
from tests.reporter.stubs import program

SLOW = Timing(load=0.01, prefill_rate=1e6, decode_rate=40, output_tokens=8, num_parallel=8)


def test_a_static_agent_and_its_reporter_have_one_set_of_slots_and_a_warning(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one", timing=SLOW)
    options = ("--set", f"balancer_agents=static={host.url}", "--set", "balancer_slots=1")
    with running_proxy(tmp_path, *options) as proxy:
        proxy.wait_online("static")
        url = f"http://localhost:{host.port}"  # the same by another name
        arguments = ["--balancer", proxy.url, "--ollama", host.url, "--advertise", url, "--name", "reported"]
        with program([*arguments, "--interval", "0.2"], tmp_path, OLLAMA_BALANCER_TOKEN=TOKEN) as reporter:
            wait_until(lambda: proxy.agents().get("static", {}).get("alias_of") == "reported", "they are one")
            assert "are one host: only" in proxy.log
            most = 0
            with ThreadPoolExecutor(4) as pool:
                pins = [{}, {}, {"X-Balancer-Agent": "static"}, {"X-Balancer-Agent": "reported"}]
                asked = [pool.submit(proxy.generate, headers=dict(pin)) for pin in pins]
                while not all(each.done() for each in asked):
                    most = max(most, host.in_flight)
                    time.sleep(0.002)
                answers = [each.result() for each in asked]
            assert [answer.headers["X-Balancer-Agent"] for answer in answers] == ["reported"] * 4
            assert most == 1
            assert len(proxy.http.get("/api/ps").json()["models"]) == 1
            [row] = [row for row in proxy.http.get("/dashboard/data").json()["agents"] if row["name"] == "static"]
            assert row["reason"].startswith("the same host as reported")
            pulled = proxy.http.post("/api/copy", json={"source": "llama3.2", "destination": "other"})
            assert pulled.headers["X-Balancer-Agent"] == "reported"
            assert reporter.terminate() == 0  # and with it its name's turn
        wait_until(lambda: proxy.agents()["static"]["alias_of"] is None, "the static one stands for the host")
        assert proxy.generate().headers["X-Balancer-Agent"] == "static"
