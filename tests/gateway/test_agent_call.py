"""One call to an agent: what a host may not do to it, and that other tasks get turns whatever it sends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest

from ollama_balancer.core.address import Address
from ollama_balancer.gateway import agent_call
from ollama_balancer.gateway.agent_call import (
    EVENTS_AT_ONCE,
    MAX_INTERIM,
    READ_SIZE,
    Answer,
    Call,
    CallError,
    CallTimeoutError,
    Limits,
    answer_to,
)
from tests import jumping_loop

LIMITS = Limits(connect=60, write=60, answer=60)
MIB = 1 << 20
ENOUGH = 64 * MIB
CALL = Call(Address("10.0.0.1", 11434), "GET", "/api/version", ())
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The host's end of the connection that is made."""
    ours, theirs = socket.socketpair()

    async def connect(*_: object) -> socket.socket:
        ours.setblocking(False)
        return ours

    monkeypatch.setattr(agent_call, "connect", connect)
    with ours, theirs:
        yield theirs


def run(main: Coroutine[Any, Any, None]) -> None:
    jumping_loop.run(main)


async def read(answer: Answer) -> bytes:
    return await answer.body(ENOUGH, lambda: None)


async def call(
    body: Callable[[Answer], Awaitable[bytes]] = read, limits: Limits = LIMITS, request: Call = CALL
) -> bytes:
    async with answer_to(request, limits) as answer:
        return await body(answer)


@contextlib.contextmanager
def all_there(host: socket.socket, data: bytes) -> Iterator[None]:
    """Keep the buffer full with what the host sends, from a thread, so that a read never has to wait for long."""

    def send() -> None:
        with contextlib.suppress(OSError):
            host.sendall(data)
        with contextlib.suppress(OSError):
            host.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        host.close()
        sender.join()


def test_interim_answers_are_skipped_but_not_without_end(host: socket.socket) -> None:
    async def main() -> None:
        host.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * (MAX_INTERIM + 1))
        with pytest.raises(CallError, match=r"more than 100 interim \(1xx\) answers"):
            await call()

    run(main())


def test_as_many_interim_answers_as_are_allowed_are_skipped(host: socket.socket) -> None:
    async def main() -> None:
        host.sendall(
            b"HTTP/1.1 103 Early Hints\r\n\r\n" * MAX_INTERIM + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        )
        assert await call() == b"ok"

    run(main())


@pytest.mark.parametrize(
    ("chunk", "count", "most"),
    [
        pytest.param(b"1\r\nx\r\n", 50_000, EVENTS_AT_ONCE, id="chunks of one byte"),
        pytest.param(b"%x\r\n%s\r\n" % (MIB, b"\n" * MIB), 4, READ_SIZE, id="4 MiB of newlines"),
    ],
)
@pytest.mark.chaos
def test_others_get_turns_while_a_host_sends_all_at_once(
    host: socket.socket, chunk: bytes, count: int, most: int
) -> None:
    """No more than `most` bytes come between two turns of another task, whether or not anything was waited for."""
    since_turn, longest, size = 0, 0, 0

    async def pieces(answer: Answer) -> bytes:
        nonlocal since_turn, longest, size
        async for piece in answer.pieces():
            since_turn += len(piece)
            size += len(piece)
            longest = max(longest, since_turn)
        return b""

    async def main() -> None:
        nonlocal since_turn
        task = asyncio.create_task(call(pieces))
        while not task.done():
            since_turn = 0
            await asyncio.sleep(0)
        await task

    with all_there(host, CHUNKED + chunk * count + b"0\r\n\r\n"):
        asyncio.run(main())
    assert size == count * int(chunk.partition(b"\r\n")[0], 16)
    assert 0 < longest <= most


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        (((b"X-Note", b"se\x00cret"),), "/"),
        (((b"X-Note", b"secret\r\nX-Other: y"),), "/"),
        (((b"X secret", b"y"),), "/"),
        ((), "/secret \x00"),
        ((), "/secret/\u20ac"),
    ],
)
def test_what_http_does_not_allow_in_our_request_is_neither_sent_nor_quoted(
    monkeypatch: pytest.MonkeyPatch, fields: tuple[tuple[bytes, bytes], ...], target: str
) -> None:
    connections = []

    async def connect(*whom: object) -> socket.socket:
        connections.append(whom)
        raise OSError

    monkeypatch.setattr(agent_call, "connect", connect)

    async def main() -> None:
        with pytest.raises(CallError) as raised:
            await call(request=Call(CALL.address, "GET", target, fields))
        assert "characters in its head" in str(raised.value)
        assert "cret" not in str(raised.value)

    run(main())
    assert connections == []


def test_a_body_that_drips_is_given_up_after_its_time_in_all(host: socket.socket) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def drip() -> None:
            host.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while True:
                await asyncio.sleep(10)
                host.sendall(b"x")

        dripping = asyncio.create_task(drip())
        began = loop.time()
        with pytest.raises(CallTimeoutError, match="no whole answer within 60 s"):
            await call()
        assert 60 <= loop.time() - began < 70
        dripping.cancel()

    run(main())


def test_a_stream_may_take_longer_as_long_as_it_goes_on(host: socket.socket) -> None:
    async def pieces(answer: Answer) -> bytes:
        return b"".join([piece async for piece in answer.pieces()])

    async def main() -> None:
        async def drip() -> None:
            host.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
            for _ in range(10):
                await asyncio.sleep(50)
                host.sendall(b"x")

        dripping = asyncio.create_task(drip())
        assert await call(pieces) == b"x" * 10
        assert asyncio.get_running_loop().time() >= 500
        await dripping

    run(main())


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 200 O"])
def test_a_host_that_closes_without_an_answer_is_told_of_as_such(host: socket.socket, sent: bytes) -> None:
    async def main() -> None:
        host.sendall(sent)
        host.shutdown(socket.SHUT_WR)
        with pytest.raises(CallError, match="it closed the connection without an answer"):
            await call()

    run(main())


@pytest.mark.parametrize("value", [b"a\x1b[2Jb", "a\u009bb".encode(), b"a\x9bb", b"a\x7fb"])
def test_control_characters_in_the_headers_of_an_answer_are_refused(host: socket.socket, value: bytes) -> None:
    async def main() -> None:
        host.sendall(b"HTTP/1.1 200 OK\r\nX-Note: %s\r\nContent-Length: 0\r\n\r\n" % value)
        with pytest.raises(CallError) as raised:
            await call()
        assert "control characters" in str(raised.value) or "is not HTTP" in str(raised.value)
        assert "\x1b" not in str(raised.value)

    run(main())
