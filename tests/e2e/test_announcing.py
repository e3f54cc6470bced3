"""A balancer that announces itself, and real reporters that look for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from zeroconf import IPVersion, ServiceInfo, Zeroconf

from agent_reporter.announcement import SERVICE, prove
from agent_reporter.collectors.network import external_interfaces
from ollama_balancer.hosts.announcing import addresses_of
from tests.e2e.harness import TOKEN, Hosts, running_proxy, wait_until
from tests.reporter.stubs import StubBalancer, program

EVERYWHERE = ("--listen-host", "0.0.0.0", "--set", "balancer_announce=true")

pytestmark = pytest.mark.skipif(
    not addresses_of(["0.0.0.0"]), reason="this machine has no address by which others could reach it"
)


@contextmanager
def announced(name: str, port: int, addresses: tuple[str, ...], proof: str) -> Iterator[None]:
    """An announcement of somebody else's."""
    network = Zeroconf(ip_version=IPVersion.V4Only)
    network.register_service(
        ServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            port=port,
            parsed_addresses=list(addresses),
            properties={"proof": proof},
            server=f"{name}.local.",
        )
    )
    yield
    network.close()


def test_a_reporter_finds_the_balancer_and_tells_nobody_else_the_token(tmp_path: Path, hosts: Hosts) -> None:
    one = hosts.start("one")
    addresses = addresses_of(["0.0.0.0"])
    with (
        StubBalancer() as rogue,
        announced("rogue", rogue.port, addresses, "a" * 64),
        announced("copied", rogue.port, addresses, prove(TOKEN, rogue.port + 1, addresses)),
        running_proxy(tmp_path, *EVERYWHERE) as proxy,
    ):
        arguments = ["--discover", "--ollama", one.url, "--advertise", one.url, "--name", "one", "--interval", "0.2"]
        with program(arguments, tmp_path, OLLAMA_BALANCER_TOKEN=TOKEN) as reporter:
            wait_until(lambda: proxy.agents().get("one", {}).get("status") == "online", "the host is online")
            wait_until(lambda: reporter.err.count("with a different token: ignored") == 2, "both others were looked at")
            assert f"found balancer {_name(proxy.log)} at http://{addresses[0]}:{proxy.port}" in reporter.err
        assert rogue.registrations == []
        assert TOKEN not in proxy.log


def _name(log: str) -> str:
    return log.partition("Announced on the local network as ")[2].partition(",")[0]


def test_one_that_listens_on_this_machine_only_says_that_it_is_not_announced(tmp_path: Path) -> None:
    with running_proxy(tmp_path, "--set", "balancer_announce=true") as proxy:
        wait_until(lambda: "balancer_announce: mitmproxy listens on this machine only" in proxy.log, "it is said")


def test_a_reporter_without_a_token_does_not_look_for_anybody(tmp_path: Path) -> None:
    with program(["--discover"], tmp_path) as reporter:
        assert reporter.wait() == 2
        assert "--discover needs --token-file PATH or $OLLAMA_BALANCER_TOKEN" in reporter.err


def test_addresses_are_those_of_where_the_proxy_listens() -> None:
    everywhere = addresses_of([""])
    assert everywhere
    own = {
        entry.address for name in external_interfaces(psutil.net_if_addrs()) for entry in psutil.net_if_addrs()[name]
    }
    assert set(everywhere) <= own
    assert addresses_of(["127.0.0.1", "::1"]) == ()
    assert addresses_of(["192.0.2.9"]) == ("192.0.2.9",)
