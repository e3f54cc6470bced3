"""Look-ups of names: slow ones hold up nobody, and what was found stays in use."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from agent_reporter import resolving
from agent_reporter.resolving import Info, Resolver

INFO: Info = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 80))
OTHER: Info = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.2", 80))


class NameServer:
    """Answers for names that begin with `slow` when a test says so, and at once for others."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked: list[str] = []
        self.found: dict[str, list[Info] | OSError] = {}

    def look_up(self, host: str, *_: Any, **__: Any) -> list[Info]:
        self.asked.append(host)
        if host.startswith("slow"):
            assert self.go_on.wait(30)
        found = self.found.get(host, [INFO])
        if isinstance(found, OSError):
            raise found
        return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.look_up)
    yield server
    server.go_on.set()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("slow", [10, 100])
def test_slow_names_keep_no_other_name_and_no_thread_waiting(server: NameServer, slow: int) -> None:
    async def run() -> None:
        resolver = Resolver()
        waiting = [asyncio.create_task(resolver.look_up(f"slow{number}", 80)) for number in range(slow)]
        async with asyncio.timeout(20):
            assert await resolver.look_up("quick", 80) == [INFO]
            assert await asyncio.to_thread(lambda: "work") == "work"
        assert not any(task.done() for task in waiting)
        server.go_on.set()
        assert await asyncio.gather(*waiting) == [[INFO]] * slow

    asyncio.run(run())


def test_names_known_to_be_slow_get_few_threads(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "MAX_THREADS", 4)
    monkeypatch.setattr(resolving, "MAX_SLOW", 2)

    async def run() -> None:
        clock = Clock()
        resolver = Resolver(clock)
        for batch in (range(4), range(4, 8)):
            server.go_on.clear()
            first = [asyncio.create_task(resolver.look_up(f"slow{number}", 80)) for number in batch]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            clock.now += 10
            server.go_on.set()
            await asyncio.gather(*first)
        server.go_on.clear()
        clock.now += 60
        for number in range(8):  # all are to be asked again; meanwhile the last answers serve
            assert await resolver.look_up(f"slow{number}", 80) == [INFO]
        async with asyncio.timeout(20):
            assert await resolver.look_up("quick", 80) == [INFO]
        assert len(server.asked) == 8 + 2 + 1
        server.go_on.set()

    asyncio.run(run())


def test_the_last_address_stays_in_use_while_a_name_is_asked_and_when_nobody_answers(server: NameServer) -> None:
    async def run() -> None:
        clock = Clock()
        resolver = Resolver(clock)
        assert await resolver.look_up("name", 80) == [INFO]
        assert await resolver.look_up("name", 80) == [INFO]
        assert server.asked == ["name"]
        clock.now += resolving.FRESH_SECONDS
        server.found["name"] = socket.gaierror(socket.EAI_AGAIN, "try again")
        assert await resolver.look_up("name", 80) == [INFO]
        assert server.asked == ["name"] * 2
        clock.now += resolving.FAILED_SECONDS
        server.found["name"] = [OTHER, OTHER]
        assert await resolver.look_up("name", 80) == [OTHER]
        resolver.mark_suspect("name", 80)
        server.found["name"] = [INFO]
        assert await resolver.look_up("name", 80) == [INFO]
        clock.now += resolving.FRESH_SECONDS
        server.found["name"] = socket.gaierror(socket.EAI_NONAME, "no such name")
        for _ in range(2):
            with pytest.raises(socket.gaierror, match="no such name"):
                await resolver.look_up("name", 80)
        assert server.asked == ["name"] * 5

    asyncio.run(run())


@pytest.mark.parametrize("error", [ValueError("embedded null character"), UnicodeError("label too long")])
def test_what_is_no_name_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def look_up(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(OSError, match=r"not a host name|cannot be resolved"):
        asyncio.run(resolving.look_up("x\0", 80))


def test_who_gives_up_leaves_the_look_up_to_the_others(server: NameServer) -> None:
    async def run() -> None:
        resolver = Resolver()
        one, other = (asyncio.create_task(resolver.look_up("slow", 80)) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        server.go_on.set()
        assert await other == [INFO]
        assert server.asked == ["slow"]

    asyncio.run(run())


def test_few_names_are_kept(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "MAX_NAMES", 2)

    async def run() -> None:
        resolver = Resolver()
        for number in range(5):
            await resolver.look_up(f"name{number}", 80)
        assert len(resolver._names) == 2

    asyncio.run(run())
