"""What was learned of the hosts, over a restart."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from ollama_balancer.storage.learned import FILE_NAME
from tests.e2e.harness import Hosts, Proxy, running_proxy

MODEL = "llama3.2:latest"
GPUS = [{"name": "NVIDIA GeForce RTX 4090", "memory_total": 24 * 2**30}]


def learned(proxy: Proxy) -> dict[str, dict[str, Any]]:
    """By model, the figures that are no guesses."""
    found = proxy.http.get("/api/agents/gpu-1").json()["learned"]
    return {
        model: {name: figure for name, figure in figures.items() if figure["observations"]}
        for model, figures in found.items()
    }


def why(proxy: Proxy) -> str:
    return str(proxy.http.get("/dashboard/data").json()["decisions"][0]["why"])


def test_speeds_are_known_at_once_after_a_restart(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("gpu-1")
    with running_proxy(tmp_path) as proxy:
        proxy.register("gpu-1", host.url)
        proxy.wait_online("gpu-1")
        assert proxy.report("gpu-1", gpus=GPUS).status_code == 204
        assert learned(proxy) == {}
        prompts = ["a prompt that is long enough to be measured " * 40 + str(number) for number in range(4)]
        for prompt in prompts:
            assert proxy.generate(prompt=f"{prompt[::-1]}").status_code == 200
        assert why(proxy) == "warm here"
        before, speeds = learned(proxy), proxy.agents()["gpu-1"]["stats"]["tokens_per_second"]
        assert before[MODEL]["decode"]["observations"] == 4
        assert speeds.keys() == {MODEL}
    file = tmp_path / FILE_NAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with running_proxy(tmp_path) as proxy:
        assert learned(proxy) == before
        assert proxy.agents()["gpu-1"]["stats"]["tokens_per_second"] == speeds
        proxy.wait_online("gpu-1")
        assert proxy.report("gpu-1", gpus=GPUS).status_code == 204
        assert learned(proxy) == before
        assert proxy.report("gpu-1", gpus=[GPUS[0] | {"name": "Tesla P40"}]).status_code == 204
        assert learned(proxy) == {}
    file.write_bytes(b"\x00" * 100)
    with running_proxy(tmp_path) as proxy:
        proxy.wait_online("gpu-1")
        assert proxy.generate().status_code == 200
        assert proxy.log.count(FILE_NAME) == 2  # it was renamed, as one line says
    assert file.with_name(f"{FILE_NAME}.damaged").read_bytes() == b"\x00" * 100
