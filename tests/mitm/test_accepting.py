"""Few clients are accepted at a time, on each socket on which mitmproxy listens."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.test import taddons

from ollama_balancer.mitm import accepting

CLIENTS = 300


class Counter:
    """Counts the clients accepted in each turn of the event loop, in the place of mitmproxy's handling of them."""

    def __init__(self) -> None:
        self.accepted = [0]

    async def handle_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted[-1] += 1
        writer.close()

    async def most_at_once(self, address: tuple[str, int], clients: int) -> int:
        self.accepted = [0]
        with contextlib.ExitStack() as stack:
            for _ in range(clients):
                stack.enter_context(socket.create_connection(address, timeout=10))
            async with asyncio.timeout(30):
                while sum(self.accepted) < clients:
                    self.accepted.append(0)
                    await asyncio.sleep(0)
        return max(self.accepted)


@contextmanager
def proxyserver_on(host: str) -> Iterator[Proxyserver]:
    proxyserver = Proxyserver()
    with taddons.context(proxyserver) as running:
        running.configure(proxyserver, listen_host=host, listen_port=0)
        try:
            yield proxyserver
        finally:
            accepting.detach(proxyserver)


async def listen(proxyserver: Proxyserver, *modes: str) -> None:
    await proxyserver.servers.update([ProxyMode.parse(mode) for mode in modes])


async def settle() -> None:
    """All work that others have begun is done."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


def assert_closed(addresses: list[tuple[str, int]]) -> None:
    assert addresses
    for address in addresses:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address[:2], timeout=10)


def test_few_clients_are_accepted_at_once_and_the_others_wait_in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()
    monkeypatch.setattr(ServerInstance, "handle_stream", lambda self, *streams: counter.handle_stream(*streams))

    async def scenario() -> None:
        with proxyserver_on("127.0.0.1") as proxyserver:
            accepting.attach(proxyserver)
            for modes in (["regular"], ["regular", "socks5@127.0.0.1:0"]):  # one that begins, one that comes later
                await listen(proxyserver, *modes)
                await settle()
                for address in proxyserver.listen_addrs():
                    assert await counter.most_at_once(address[:2], CLIENTS) <= accepting.ACCEPTED_AT_ONCE + 1
            addresses = proxyserver.listen_addrs()
            await listen(proxyserver)
            await settle()
            assert_closed(addresses)

    asyncio.run(scenario())


def test_a_socket_that_is_open_already_accepts_few_clients_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()
    monkeypatch.setattr(ServerInstance, "handle_stream", lambda self, *streams: counter.handle_stream(*streams))

    async def scenario() -> None:
        with proxyserver_on("127.0.0.1") as proxyserver:
            await listen(proxyserver, "regular")
            accepting.attach(proxyserver)
            await settle()
            [address] = proxyserver.listen_addrs()
            assert await counter.most_at_once(address[:2], CLIENTS) <= accepting.ACCEPTED_AT_ONCE + 1
            await listen(proxyserver)

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", range(4))
def test_modes_that_change_at_once_leave_nothing_open(turns: int) -> None:
    async def scenario() -> None:
        with proxyserver_on("") as proxyserver:
            accepting.attach(proxyserver)
            await listen(proxyserver, "regular")
            for _ in range(turns):
                await asyncio.sleep(0)
            await listen(proxyserver, "regular", "socks5@127.0.0.1:0")
            addresses = proxyserver.listen_addrs()
            await settle()
            assert proxyserver.listen_addrs() == addresses
            await listen(proxyserver)
            await settle()
            assert_closed(addresses)

    asyncio.run(scenario())


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as s:
        s.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has IPv4 only: mitmproxy listens on one socket")
def test_a_socket_that_cannot_be_taken_over_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start_server, calls = asyncio.start_server, []

    async def failing(*arguments: Any, **named: Any) -> asyncio.Server:
        calls.append(named)
        if "sock" in named and len(calls) == 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return await start_server(*arguments, **named)

    monkeypatch.setattr(asyncio, "start_server", failing)

    async def scenario() -> None:
        with proxyserver_on("") as proxyserver:
            accepting.attach(proxyserver)
            await listen(proxyserver, "regular")
            await settle()
            addresses = proxyserver.listen_addrs()
            assert len(addresses) == 2
            for address in addresses:
                socket.create_connection(address[:2], timeout=10).close()
            await listen(proxyserver)
            await settle()
            assert_closed(addresses)

    asyncio.run(scenario())
    assert len(calls) == 3
    assert "Too many open files" in caplog.text
