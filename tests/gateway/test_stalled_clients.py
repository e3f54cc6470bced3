from __future__ import annotations

import asyncio
import sys

from ollama_balancer.gateway.stalled_clients import StalledClients, unsent
from tests import jumping_loop
from tests.core.fakes import Clock


def test_who_takes_nothing_for_a_minute_is_stuck() -> None:
    clock = Clock()
    clients = StalledClients(clock)
    assert clients.due
    for second in range(0, 60, 5):
        clock.now = 1000.0 + second
        assert clients.find_stalled([("a", 5), ("b", second)]) == []
        assert not clients.due
    clock.now = 1060.0
    assert clients.due
    assert clients.find_stalled([("a", 5), ("b", 60)]) == ["a"]


def test_who_has_taken_all_meanwhile_begins_anew_and_nobody_is_remembered() -> None:
    clock = Clock()
    clients = StalledClients(clock)
    clients.find_stalled([("a", 5)])
    clock.now += 40
    clients.find_stalled([])
    assert len(clients) == 0
    clients.find_stalled([("a", 5)])
    clock.now += 40
    assert clients.find_stalled([("a", 5)]) == []
    clock.now += 20
    assert clients.find_stalled([("a", 5)]) == ["a"]
    assert len(clients) == 0


def test_what_waits_for_a_client_changes_as_soon_as_it_takes_some() -> None:
    jumping_loop.run(_slowly_taken())
    assert unsent(None) is None


async def _slowly_taken() -> None:
    writers: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: writers.put_nowait(writer), "127.0.0.1", 0)
    async with server:
        reader, client = await asyncio.open_connection(*server.sockets[0].getsockname()[:2], limit=1024)
        client.transport.pause_reading()  # type: ignore[attr-defined]
        writer = await writers.get()
        assert unsent(writer) is None
        writer.write(b"x" * 64 * 1024 * 1024)
        before = None
        async with asyncio.timeout(30):
            while before is None or before != unsent(writer):  # until the system takes no more
                before = unsent(writer)
                await asyncio.sleep(0.1)
        client.transport.resume_reading()  # type: ignore[attr-defined]
        # The system may hold so much that what waits here stays the same, though the client takes some.
        await reader.readexactly(1024 * 1024 if sys.platform == "linux" else 32 * 1024 * 1024)
        async with asyncio.timeout(30):
            while before == unsent(writer):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        writer.transport.abort()
        client.transport.abort()
