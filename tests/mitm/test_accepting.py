"""Few clients are accepted at a time, on each socket on which mitmproxy listens."""

from __future__ import annotations

import asyncio
import contextlib
import socket

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


async def listen(proxyserver: Proxyserver, *modes: str) -> None:
    await proxyserver.servers.update([ProxyMode.parse(mode) for mode in modes])
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


def test_few_clients_are_accepted_at_once_and_the_others_wait_in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()
    monkeypatch.setattr(ServerInstance, "handle_stream", lambda self, *streams: counter.handle_stream(*streams))

    async def scenario() -> None:
        proxyserver = Proxyserver()
        with taddons.context(proxyserver) as running:
            running.configure(proxyserver, listen_host="127.0.0.1", listen_port=0)
            accepting.attach(proxyserver)
            for modes in (["regular"], ["regular", "socks5@127.0.0.1:0"]):  # one that begins, one that comes later
                await listen(proxyserver, *modes)
                for address in proxyserver.listen_addrs():
                    assert await counter.most_at_once(address[:2], CLIENTS) <= accepting.ACCEPTED_AT_ONCE + 1
            addresses = proxyserver.listen_addrs()
            await listen(proxyserver)
            for address in addresses:
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(address[:2], timeout=10)
            accepting.detach(proxyserver)

    asyncio.run(scenario())
