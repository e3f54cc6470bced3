"""Two agents are one host where their names and addresses lead to one server, and only there."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from agent_reporter.collectors.reach import local_address_toward
from ollama_balancer.core.address import Address
from ollama_balancer.hosts.local import Locator, listening_at, local_key
from ollama_balancer.hosts.prober import Prober
from tests.core.fakes import new_registry
from tests.e2e.harness import free_port

pytestmark = [
    pytest.mark.e2e,  # reads the table of all the machine's connections, too, which may be long
    pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is this machine's on Linux alone"),
]


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    body = b'{"version": "0.33.0", "models": []}'
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    writer.close()


def aliases(listening: Sequence[str], hosts: Sequence[str]) -> list[str | None]:
    """Of agents at these hosts, one port each, the host that each is an alias of; servers listen at those addresses."""
    port = free_port()

    async def run() -> list[str | None]:
        registry = new_registry(must_reach=True)
        prober = Prober(registry, wants_local=lambda: False, via="1.1 test")
        async with AsyncExitStack() as stack:
            for address in listening:
                await stack.enter_async_context(await asyncio.start_server(serve, address, port, reuse_address=True))
            agents = [registry.register(f"a{n}", Address(host, port))[0] for n, host in enumerate(hosts)]
            for _ in range(2):
                for agent in agents:
                    await prober.probe(agent)
                    assert agent.online
        return [agent.alias_of.address.host if agent.alias_of else None for agent in agents]

    return asyncio.run(run())


def test_one_address_under_two_names_is_one_host() -> None:
    assert aliases(["127.0.0.1"], ["127.0.0.1", "localhost", "127.1"]) == [None, "127.0.0.1", "127.0.0.1"]


def test_a_server_that_listens_everywhere_is_one_host_by_each_of_the_machines_addresses() -> None:
    try:
        own = local_address_toward("192.0.2.1")
    except OSError:
        own = "127.0.0.3"
    assert aliases(["0.0.0.0"], ["127.0.0.1", own, "127.0.0.2"]) == [None, "127.0.0.1", "127.0.0.1"]


def test_servers_that_listen_at_addresses_of_their_own_are_hosts_of_their_own() -> None:
    assert aliases(["127.0.0.1", "127.0.0.2"], ["127.0.0.1", "127.0.0.2"]) == [None, None]


def test_a_socket_for_one_address_takes_what_one_for_all_does_not() -> None:
    assert local_key("127.0.0.1", 1, {"127.0.0.1"}) != local_key("10.0.0.1", 1, {"127.0.0.1"})
    assert local_key("10.0.0.2", 1, {"127.0.0.1"}) == local_key("10.0.0.1", 1, {"127.0.0.1"})
    assert listening_at(free_port()) == frozenset()


def test_an_agent_that_has_moved_away_is_no_host_of_this_machine_any_more() -> None:
    async def run() -> None:
        registry = new_registry(must_reach=True)
        locator = Locator(registry)
        moved, local = Address("127.0.0.1", 11434), Address("203.0.113.9", 11434)
        gpu, _ = registry.register("gpu", moved)
        await locator.locate(gpu, moved, "127.0.0.1")
        registry.register("gpu", local)
        other, _ = registry.register("other", moved)
        await locator.locate(other, moved, "127.0.0.1")  # before the one that moved is reached
        assert gpu.host_key != other.host_key
        await locator.locate(gpu, local, "203.0.113.9")
        await locator.locate(other, moved, "127.0.0.1")
        for agent in (gpu, other):
            registry.liveness.reached(agent)
        assert (gpu.alias_of, other.alias_of) == (None, None)

    asyncio.run(run())


def test_names_that_are_left_when_another_goes_are_one_host_still() -> None:
    async def run() -> None:
        registry = new_registry(must_reach=True)
        prober = Prober(registry, wants_local=lambda: False, via="1.1 test")
        async with await asyncio.start_server(serve, "0.0.0.0", 0) as server:
            port = server.sockets[0].getsockname()[1]
            hosts = {"a": "127.0.0.1", "b": "localhost", "c": "127.0.0.2"}
            a, b, c = [registry.register(name, Address(host, port))[0] for name, host in hosts.items()]
            for agent in (a, b, c):
                await prober.probe(agent)
            assert (a.alias_of, b.alias_of, c.alias_of) == (None, a, a)
            registry.remove(c)
            registry.liveness.unreachable(a, "refused")
            await prober.probe(a)
            assert a.online
            assert (a.alias_of, b.alias_of) == (b, None) or (a.alias_of, b.alias_of) == (None, a)

    asyncio.run(run())
