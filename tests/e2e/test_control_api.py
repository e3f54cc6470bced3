"""The control API on the proxy's own port, as the contract has it."""

from __future__ import annotations

import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from ollama_balancer.simulator import Timing
from tests.e2e.harness import TOKEN, Hosts, free_port, report, running_proxy, wait_until


def test_reports_registration_and_the_refusals(tmp_path: Path) -> None:
    with running_proxy(tmp_path) as proxy:
        created = proxy.control("POST", "/api/agents", {"name": "gpu-1", "url": "http://127.0.0.1:1"})
        assert created.status_code == 201
        assert created.json().keys() == {"id", "name", "url"}
        agent_id = created.json()["id"]
        assert proxy.control("POST", "/api/agents", {"name": "gpu-1", "url": "http://127.0.0.1:1"}).status_code == 200

        answer = proxy.report(agent_id, cpu=41.5)
        assert (answer.status_code, answer.content) == (204, b"")
        assert "content-length" not in answer.headers
        assert proxy.agents()["gpu-1"]["metrics"]["cpu_usage"] == 41.5
        older = report(cpu=99, timestamp=(datetime.now(UTC) - timedelta(minutes=1)).isoformat())
        assert proxy.control("POST", "/api/agents/gpu-1/metrics", older).status_code == 204
        assert proxy.agents()["gpu-1"]["metrics"]["cpu_usage"] == 41.5

        path = f"/api/agents/{agent_id}/metrics"
        assert proxy.control("POST", "/api/agents/nobody/metrics", report()).status_code == 404
        for bad, named in (
            ({**report(), "cpu_usage": 101}, "cpu_usage"),
            ({**report(), "memory_usage": "12"}, "memory_usage"),
            ({**report(), "timestamp": "2026-01-01T00:00:00"}, "timestamp"),
            (b'{"cpu_usage": NaN}', "cpu_usage"),
            (b"{", "body"),
        ):
            refused = proxy.control("POST", path, bad)
            assert refused.status_code == 400
            assert named in refused.json()["error"]
        assert proxy.control("POST", path, report(), token=None).status_code == 401
        assert proxy.control("POST", path, report(), token="a-wrong-token").status_code == 401
        for method, target, allowed in (
            ("GET", path, "POST"),
            ("PUT", "/api/agents", "GET, HEAD, POST"),
            ("POST", f"/api/agents/{agent_id}", "DELETE, GET, HEAD"),
            ("POST", "/api/balancer", "GET, HEAD"),
        ):
            refused = proxy.control(method, target, {})
            assert refused.status_code == 405
            assert sorted(refused.headers["Allow"].split(", ")) == allowed.split(", ")
        assert proxy.control("GET", "/api/agents/x/y/z").status_code == 404
        assert proxy.http.get("/api/agents/nobody").status_code == 404
        assert proxy.http.get(f"/api/agents/{agent_id}").json()["name"] == "gpu-1"
        assert proxy.control("DELETE", f"/api/agents/{agent_id}").status_code == 204
        assert proxy.control("DELETE", f"/api/agents/{agent_id}").status_code == 404
        assert proxy.agents() == {}


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_a_mebibyte_is_refused_with_413(tmp_path: Path, chunked: bool) -> None:
    with running_proxy(tmp_path) as proxy:
        proxy.register("gpu-1", "http://127.0.0.1:1")
        body = b'{"x": "' + b"y" * 1024 * 1024 + b'"}'
        content = iter([body[:1000], body[1000:]]) if chunked else body
        headers = {"Authorization": f"Bearer {TOKEN}"}
        refused = proxy.http.post("/api/agents/gpu-1/metrics", content=content, headers=headers)
        assert refused.status_code == 413
        assert "error" in refused.json()
        assert proxy.report("gpu-1").status_code == 204


def test_ids_are_stable_across_restarts_and_an_agent_without_url_is_the_caller(tmp_path: Path) -> None:
    ids = set()
    for _ in range(2):
        with running_proxy(tmp_path) as proxy:
            created = proxy.control("POST", "/api/agents", {"name": "gpu-1", "port": 12345})
            assert created.json()["url"] == "http://127.0.0.1:12345"
            ids.add(created.json()["id"])
    assert len(ids) == 1


def test_a_drained_agent_gets_nothing_new_and_finishes_what_runs(tmp_path: Path, hosts: Hosts) -> None:
    slow = hosts.start(
        "slow", timing=Timing(load=0, prefill_rate=1e6, decode_rate=20, output_tokens=20, num_parallel=2)
    )
    other = hosts.start("other")
    agents = f"balancer_agents=slow={slow.url},other={other.url}"
    with running_proxy(tmp_path, "--set", agents, "--set", "balancer_mode=metrics") as proxy:
        proxy.wait_online("slow", "other")
        with proxy.http.stream(
            "POST",
            "/api/generate",
            json={"model": "llama3.2", "prompt": "x"},
            headers={"X-Balancer-Agent": "slow"},
        ) as response:
            lines = response.iter_lines()
            next(lines)
            with httpx.Client(base_url=proxy.url, trust_env=False, verify=False, timeout=30) as second:
                headers = {"Authorization": f"Bearer {TOKEN}"}
                drained = second.post("/api/agents/slow/drain", headers=headers)
                assert drained.json()["status"] == "draining"
                assert drained.json()["in_flight"] == 1
                for _ in range(3):
                    answer = second.post("/api/generate", json={"model": "llama3.2", "prompt": "x", "stream": False})
                    assert answer.headers["X-Balancer-Agent"] == "other"
            assert '"done":true' in list(lines)[-1].replace(" ", "")
        assert proxy.control("POST", "/api/agents/slow/resume").json()["status"] == "online"
        used = {proxy.generate().headers["X-Balancer-Agent"] for _ in range(4)}
        assert used == {"slow", "other"}


def test_a_deleted_agents_running_request_finishes(tmp_path: Path, hosts: Hosts) -> None:
    slow = hosts.start("slow", timing=Timing(load=0, prefill_rate=1e6, decode_rate=20, output_tokens=20))
    with running_proxy(tmp_path) as proxy:
        proxy.register("slow", slow.url)
        proxy.wait_online("slow")
        done: list[str] = []

        def ask() -> None:
            answer = httpx.post(
                proxy.url + "/api/generate", json={"model": "llama3.2", "prompt": "x"}, timeout=30, trust_env=False
            )
            done.append(answer.text)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: proxy.agents()["slow"]["in_flight"] == 1, "the request runs")
        assert proxy.control("DELETE", "/api/agents/slow").status_code == 204
        thread.join(30)
        assert '"done":true' in done[0].replace(" ", "")
        assert proxy.generate().status_code == 503


def test_health_and_totals(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    with running_proxy(
        tmp_path, "--set", f"balancer_agents=one={host.url},gone=http://127.0.0.1:{free_port()}"
    ) as proxy:
        proxy.wait_online("one")
        assert proxy.http.get("/health").status_code == 200
        proxy.generate()
        shown = proxy.http.get("/api/balancer").json()
        assert shown["mode"] == "adaptive"
        assert shown["totals"]["requests"] == shown["totals"]["succeeded"] == 1
        assert shown["agents"]["online"] == 1
        assert shown["agents"]["offline"] == 1
        assert shown["waiting"] == 0
        proxy.control("POST", "/api/agents/one/drain")
        assert proxy.http.get("/health").status_code == 503


def test_the_token_is_made_once_kept_private_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "ollama-balancer-token"
    tokens = set()
    for _ in range(2):
        with running_proxy(tmp_path, "-w", str(tmp_path / "flows"), token=None) as proxy:
            token = file.read_text().strip()
            tokens.add(token)
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert proxy.control("POST", "/api/agents", {"name": "a"}, token=token).status_code in (200, 201)
            assert proxy.control("POST", "/api/agents", {"name": "a"}, token=token[:-1]).status_code == 401
            wait_until(lambda: "ollama-agent-reporter --balancer http://" in proxy.log, "it says how a host joins")
            assert str(file) in proxy.log
        assert token not in proxy.log
        assert token[:-1] not in proxy.log
        assert token[:-1].encode() not in (tmp_path / "flows").read_bytes()
    assert len(tokens) == 1
