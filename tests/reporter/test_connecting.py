"""A name with several addresses is reached by whichever of them answers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from agent_reporter import connecting
from agent_reporter.connecting import addresses_of, connect, first_of, interleaved, is_address
from agent_reporter.http import call
from agent_reporter.resolving import Info
from tests import jumping_loop
from tests.e2e.harness import free_port, silent_listener

resource = pytest.importorskip("resource")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is this machine's on Linux alone")

NAME = "several.test"


def info(address: str, port: int) -> Info:
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "_answered", type(connecting._answered)())


class Sockets(list[socket.socket]):
    """All that are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        made = self

        class Socket(socket.socket):
            def __init__(self, *arguments: Any, **more: Any) -> None:
                super().__init__(*arguments, **more)
                made.append(self)

        monkeypatch.setattr(socket, "socket", Socket)


@pytest.fixture
def alive() -> Iterator[int]:
    """The port of a server on 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def reached(infos: Sequence[Info], *, eager: bool = False) -> str:
    """The address that won."""

    async def run() -> str:
        if eager:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with asyncio.timeout(30):
            won = await first_of(NAME, infos[0][4][1], infos)
        return str(won.getpeername()[0])

    return jumping_loop.run(run())


@pytest.mark.parametrize("eager", [False, True])
def test_one_that_refuses_is_followed_by_the_next_at_once(
    monkeypatch: pytest.MonkeyPatch, alive: int, eager: bool
) -> None:
    monkeypatch.setattr(connecting, "DELAY", 1000.0)
    infos = [info("127.0.0.2", alive), info("127.0.0.3", alive), info("127.0.0.1", alive)]
    assert reached(infos, eager=eager) == "127.0.0.1"


@pytest.mark.parametrize("eager", [False, True])
def test_one_that_is_silent_is_followed_by_the_next_after_the_delay(alive: int, eager: bool) -> None:
    with silent_listener("127.0.0.2", alive):
        assert reached([info("127.0.0.2", alive), info("127.0.0.1", alive)], eager=eager) == "127.0.0.1"


def test_if_all_fail_the_most_telling_failure_is_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    made = Sockets(monkeypatch)
    with pytest.raises(ConnectionRefusedError):
        reached([info("127.0.0.2", port), info("127.0.0.1", port)])
    assert [each.fileno() for each in made if each.family == socket.AF_INET] == [-1, -1]
    failures = [OSError(errno.EHOSTUNREACH, ""), OSError(errno.ECONNREFUSED, ""), OSError(errno.EMFILE, "")]
    assert connecting._most_telling(failures).errno == errno.EMFILE
    assert connecting._most_telling(failures[:2]).errno == errno.ECONNREFUSED
    with pytest.raises(OSError, match="no address"):
        asyncio.run(first_of(NAME, 1, []))


def test_who_gives_up_leaves_no_socket_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(port: int, made: Sockets) -> None:
        task = asyncio.create_task(first_of(NAME, port, [info("127.0.0.2", port)] * 3))
        async with asyncio.timeout(30):
            while sum(each.family == socket.AF_INET for each in made) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    with silent_listener("127.0.0.2") as port:
        made = Sockets(monkeypatch)
        jumping_loop.run(run(port, made))
        assert [each.fileno() for each in made if each.family == socket.AF_INET] == [-1] * 3


def test_families_take_turns() -> None:
    four, six = [(socket.AF_INET, n) for n in range(3)], [(socket.AF_INET6, n) for n in range(2)]
    order: Any = interleaved([*six, *four])  # type: ignore[list-item]
    assert order == [six[0], four[0], six[1], four[1], four[2]]


def test_what_answered_last_is_tried_first(monkeypatch: pytest.MonkeyPatch, alive: int) -> None:
    looked_up: list[str] = []

    def look_up(host: str, port: int, *_: Any, **__: Any) -> list[Info]:
        looked_up.append(host)
        return [info("127.0.0.2", port), info("127.0.0.3", port), info("127.0.0.1", port)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def run() -> list[str]:
        before = await addresses_of(NAME, alive)
        (await connect(NAME, alive)).close()
        after = await addresses_of(NAME, alive)
        return [str(each[4][0]) for each in (*before, *after)]

    assert asyncio.run(run()) == ["127.0.0.2", "127.0.0.3", "127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.3"]
    assert looked_up == [NAME]


def test_addresses_are_not_looked_up_and_too_many_names_are_forgotten(
    monkeypatch: pytest.MonkeyPatch, alive: int
) -> None:
    def look_up(*_: Any, **__: Any) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(connecting, "MAX_NAMES", 2)

    async def run() -> None:
        (await connect("127.0.0.1", alive)).close()
        for number in range(5):
            (await first_of(f"{number}.test", alive, [info("127.0.0.1", alive)])).close()

    asyncio.run(run())
    assert [name for name, _ in connecting._answered] == ["3.test", "4.test"]
    assert [is_address(host) for host in ("::1", "fe80::1%eth0", "10.0.0.1", "127.1", "localhost")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_a_call_reaches_a_host_whose_first_address_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    async def run() -> bytes:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            found = [info("127.0.0.2", port), info("127.0.0.1", port)]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
            with silent_listener("127.0.0.2", port):
                return (await call("GET", f"http://{NAME}:{port}/", timeout=30, limit=100)).body

    assert asyncio.run(run()) == b"ok"


def test_that_there_is_no_descriptor_left_is_said_as_it_is(alive: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []

    async def test() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        with pytest.raises(OSError, match="Too many open files") as failed:
            await first_of(NAME, alive, [info("127.0.0.1", alive), info("127.0.0.2", alive)])
        assert failed.value.errno == errno.EMFILE

    try:
        asyncio.run(test())
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
