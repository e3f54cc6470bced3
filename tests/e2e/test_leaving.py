"""A client that leaves is out at once, in whatever phase its request is, and its agent hears of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_balancer.simulator import SimulatedOllama
from tests.e2e.harness import Hosts, Proxy, running_proxy
from tests.e2e.leaving import PHASES, leave


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, SimulatedOllama, Hosts]]:
    hosts = Hosts()
    host = hosts.start("one")
    options = ("--set", "balancer_slots=1", "--set", "balancer_connect_timeout=60")
    try:
        with running_proxy(
            tmp_path_factory.mktemp("proxy"), "--set", f"balancer_agents=one={host.url}", *options
        ) as proxy:
            proxy.wait_online("one")
            yield proxy, host, hosts
    finally:
        hosts.stop()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("phase", PHASES)
def test_nothing_is_left_of_who_leaves(
    scene: tuple[Proxy, SimulatedOllama, Hosts], tmp_path: Path, phase: str, stream: bool
) -> None:
    proxy, host, hosts = scene
    before = proxy.introspect()
    leave(proxy, host, hosts, phase, stream=stream)
    after = proxy.introspect()
    assert after["contexts"] == before["contexts"] == 0
    assert set(after["in_flight"].values()) == {0}
    assert proxy.agents()["one"]["strikes"] == 0, "who leaves says nothing of the agent"
    assert proxy.agents()["one"]["stats"]["failed"] == 0
