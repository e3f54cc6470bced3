"""Requests spread over the fleet as the mode says."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import httpx

from tests.e2e.harness import Hosts, free_port, report, running_proxy, wait_until

METRICS = ("--set", "balancer_mode=metrics")


def served(hosts: Hosts) -> dict[str, int]:
    # A host counts a request when it is done with it, which may be after the client has its answer.
    wait_until(lambda: not any(host.in_flight for host in hosts.all), "the hosts are done")
    return {host.name: sum(host.counts.values()) for host in hosts.all}


def test_nine_requests_go_three_to_each_of_three_registered_agents(tmp_path: Path, hosts: Hosts) -> None:
    with running_proxy(tmp_path, "--set", "balancer_mode=roundrobin") as proxy:
        for name in ("one", "two", "three"):
            proxy.register(name, hosts.start(name).url)
        proxy.wait_online("one", "two", "three")
        answered = Counter(proxy.generate().headers["X-Balancer-Agent"] for _ in range(9))
        assert answered == {"one": 3, "two": 3, "three": 3}
        assert served(hosts) == {"one": 3, "two": 3, "three": 3}
        assert all(agent["stats"]["succeeded"] == 3 for agent in proxy.agents().values())


def test_nine_requests_without_any_metrics_go_three_to_each_in_metrics_mode(tmp_path: Path, hosts: Hosts) -> None:
    with running_proxy(tmp_path, *METRICS) as proxy:
        for name in ("one", "two", "three"):
            proxy.register(name, hosts.start(name).url)
        proxy.wait_online("one", "two", "three")
        for _ in range(9):
            assert proxy.generate().status_code == 200
        assert served(hosts) == {"one": 3, "two": 3, "three": 3}


def start_three(proxy_agents: dict[str, float], hosts: Hosts) -> list[str]:
    return [f"{name}={hosts.start(name).url}" for name in proxy_agents]


def test_the_agent_with_cpu_90_is_avoided(tmp_path: Path, hosts: Hosts) -> None:
    cpu = {"calm": 10.0, "idle": 10.0, "busy": 90.0}
    with running_proxy(tmp_path, *METRICS, "--set", "balancer_agents=" + ",".join(start_three(cpu, hosts))) as proxy:
        proxy.wait_online(*cpu)
        for name, value in cpu.items():
            assert proxy.report(name, cpu=value).status_code == 204
        for _ in range(8):
            assert proxy.generate().status_code == 200
        assert served(hosts) == {"calm": 4, "idle": 4, "busy": 0}


def test_with_every_cpu_at_95_the_agents_get_their_turn(tmp_path: Path, hosts: Hosts) -> None:
    memory = {"a": 10.0, "b": 50.0, "c": 90.0}
    with running_proxy(tmp_path, *METRICS, "--set", "balancer_agents=" + ",".join(start_three(memory, hosts))) as proxy:
        proxy.wait_online(*memory)
        for name, value in memory.items():
            proxy.report(name, cpu=95.0, memory=value)
        for _ in range(9):
            assert proxy.generate().status_code == 200
        assert served(hosts) == {"a": 3, "b": 3, "c": 3}


def test_the_one_agent_whose_metrics_are_stale_comes_last(tmp_path: Path, hosts: Hosts) -> None:
    names = {"a": 1.0, "b": 1.0, "silent": 1.0}
    agents = ",".join(start_three(names, hosts))
    with running_proxy(
        tmp_path, *METRICS, "--set", f"balancer_agents={agents}", "--set", "balancer_stale_after=2"
    ) as proxy:
        proxy.wait_online(*names)
        proxy.report("silent", cpu=1.0)

        def only_silent_is_stale() -> bool:
            for name in ("a", "b"):
                proxy.report(name, cpu=50.0)
            return bool(proxy.agents()["silent"]["stale"])

        assert not proxy.agents()["silent"]["stale"]
        wait_until(only_silent_is_stale, "the report of the silent agent is stale")
        for name in ("a", "b"):
            proxy.report(name, cpu=50.0)
        for _ in range(4):
            assert proxy.generate().status_code == 200
        assert served(hosts) == {"a": 2, "b": 2, "silent": 0}


def test_agents_without_the_model_are_no_candidates(tmp_path: Path, hosts: Hosts) -> None:
    hosts.start("with", "qwen3")
    hosts.start("without", "llama3.2")
    agents = ",".join([*(f"{host.name}={host.url}" for host in hosts.all), f"away=http://127.0.0.1:{free_port()}"])
    with running_proxy(tmp_path, *METRICS, "--set", f"balancer_agents={agents}") as proxy:
        proxy.wait_online("with", "without")
        for spelling in ("qwen3", "Qwen3:latest", "library/qwen3", "registry.ollama.ai/library/qwen3"):
            response = proxy.generate(spelling)
            assert response.status_code == 200, response.text
            assert response.headers["X-Balancer-Agent"] == "with"
            assert response.json()["model"] == spelling
        for path, expected in (
            ("/api/generate", {"error": "model 'nope' not found"}),
            ("/v1/chat/completions", {"message": "model 'nope' not found", "type": "not_found_error"}),
            ("/v1/messages", {"message": "model 'nope' not found", "type": "not_found_error"}),
        ):
            response = proxy.http.post(path, json={"model": "nope", "messages": [], "prompt": "x"})
            assert response.status_code == 404
            answer = response.json()
            shown = answer if path.startswith("/api") else answer["error"]
            assert shown.items() >= expected.items()
        assert proxy.generate("lama3.2").json() == {"error": "model 'lama3.2' not found, did you mean 'llama3.2'?"}
        assert served(hosts)["without"] == 0


def test_least_requests_counts_what_is_in_flight(tmp_path: Path, hosts: Hosts) -> None:
    hosts.start("stuck").faults.hang = True
    hosts.start("free")
    agents = ",".join(f"{host.name}={host.url}" for host in hosts.all)
    with running_proxy(
        tmp_path, "--set", f"balancer_agents={agents}", "--set", "balancer_mode=least_requests"
    ) as proxy:
        proxy.wait_online("stuck", "free")
        pinned = threading.Thread(
            target=lambda: httpx.post(
                proxy.url + "/api/generate",
                json={"model": "llama3.2", "prompt": "x"},
                headers={"X-Balancer-Agent": "stuck"},
                timeout=60,
                trust_env=False,
            ),
            daemon=True,
        )
        pinned.start()
        wait_until(lambda: proxy.agents()["stuck"]["in_flight"] == 1, "the request is in flight")
        for _ in range(4):
            assert proxy.generate().headers["X-Balancer-Agent"] == "free"
        hosts.all[0].faults.hang = False
        hosts.kill(hosts.all[0])
        pinned.join(30)
        assert not pinned.is_alive()
        wait_until(lambda: proxy.agents()["stuck"]["in_flight"] == 0, "the request has ended")


def test_collected_metrics_are_in_memory(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")  # what the first probe finds would replace the report's models
        body = report(cpu=12.5, memory=33.3, active=2, avg_response_time_ms=81.5, models=["a:latest", "b:1b"])
        assert proxy.control("POST", "/api/agents/one/metrics", body).status_code == 204
        agent = proxy.agents()["one"]
        assert agent["metrics"]["cpu_usage"] == 12.5
        assert agent["metrics"]["avg_response_time"] == 81.5
        assert agent["score"] == 12.5 + 33.3 + 20
        assert agent["models"] == ["a:latest", "b:1b"]
        assert not agent["stale"]
        assert agent["metrics_age"] < 30
