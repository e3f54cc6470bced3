"""A model whose slots are all in use is loaded on one more host, on the balancer's own account."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ollama_balancer.simulator.host import SimulatedOllama
from ollama_balancer.simulator.timing import Timing
from tests.e2e.harness import Hosts, Proxy, running_proxy, wait_until

SHORT = {"num_predict": 2}
TIMING = Timing(load=0.05, decode_rate=50, output_tokens=1e5, prefill_rate=1e6)


@contextmanager
def answering(proxy: Proxy) -> Iterator[str]:
    """Somebody reads a long answer; yields who gives it."""
    body = {"model": "llama3.2", "prompt": "on and on"}
    with proxy.http.stream("POST", "/api/generate", json=body) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        yield response.headers["X-Balancer-Agent"]


def loaded(proxy: Proxy, agent: str) -> Any:
    return proxy.agents()[agent]["loaded_models"]


def start(hosts: Hosts) -> tuple[dict[str, SimulatedOllama], str]:
    by_name = {name: hosts.start(name, timing=TIMING) for name in ("one", "two")}
    return by_name, ",".join(f"{name}={host.url}" for name, host in by_name.items())


def test_a_model_is_loaded_where_nobody_has_asked_for_it_yet(tmp_path: Path, hosts: Hosts) -> None:
    by_name, agents = start(hosts)
    options = "--set", f"balancer_agents={agents}", "--set", "balancer_slots=1"
    with running_proxy(tmp_path, *options) as proxy:
        proxy.wait_online(*by_name)
        proxy.generate(options=SHORT)
        with answering(proxy) as first:
            (other,) = by_name.keys() - {first}
            wait_until(lambda: loaded(proxy, other) == ["llama3.2:latest"], "the other host has loaded it")
            assert proxy.agents()[other]["stats"]["requests"] == 0
            assert proxy.agents()[other]["loading"] == []
            assert f"Agent {other} is to load llama3.2:latest" in proxy.log
            assert proxy.generate(options=SHORT).headers["X-Balancer-Agent"] == other


def test_what_is_switched_off_loads_nothing(tmp_path: Path, hosts: Hosts) -> None:
    by_name, agents = start(hosts)
    options = "--set", f"balancer_agents={agents}", "--set", "balancer_slots=1", "--set", "balancer_preload=false"
    with running_proxy(tmp_path, *options) as proxy:
        proxy.wait_online(*by_name)
        proxy.generate(options=SHORT)
        with answering(proxy) as first, answering(proxy) as second:
            assert {first, second} == by_name.keys()
        assert "is to load" not in proxy.log
