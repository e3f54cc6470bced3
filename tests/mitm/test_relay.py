"""Whole chunks are found however the bytes come, and the relay gives the transport back whatever happens."""

from __future__ import annotations

import asyncio
import itertools
import selectors
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h11
import pytest
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http

from ollama_balancer.mitm.fastpath.relay import (
    ACTIVITY_SECONDS,
    BATCH,
    BATCH_BYTES,
    LARGEST_CHUNK,
    ChunkSplitter,
    StreamRelay,
)
from ollama_balancer.mitm.fastpath.selector import install


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def feed(pieces: list[bytes]) -> tuple[bytes, list[bytes], bytes, bool]:
    """All that is forwarded, the payloads, what is left of the pieces, and whether the splitter is over."""
    splitter = ChunkSplitter()
    forwarded, payloads = b"", []
    for at, piece in enumerate(pieces):
        alone = splitter.single_chunk(piece)
        some, more = (piece, [alone]) if alone else splitter.feed(piece)
        forwarded += some
        payloads += more
        if splitter.ended:
            return forwarded, payloads, splitter.remainder + b"".join(pieces[at + 1 :]), True
    return forwarded, payloads, splitter.remainder, False


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


PAYLOADS = st.lists(st.binary(min_size=1, max_size=80), max_size=8)
ENDS = st.sampled_from(
    [
        b"",
        b"0\r\n\r\n",
        b"0\r\nX-Trailer: 1\r\n\r\n",
        b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"3;name=value\r\nabc\r\n",
        b"nonsense\r\n",
        b"5\r\nabcdefg\r\n",
        b"+3\r\nabc\r\n",
        b"0x3\r\nabc\r\n",
        b"1_0\r\nabcdefghijklmnop\r\n",
        b" 3\r\nabc\r\n",
        b"-3\r\nabc\r\n",
        b"3\nabc\n",
        b"\r\n",
        b"fffffffff\r\n",
        b"000000000003\r\nabc\r\n",
        b"20000\r\nabc",
        b"ffffffff\r\nabc",
        b"a\r\nabc",
        b"a",
        b"3\r\nabc\r",
    ]
)


@given(PAYLOADS, ENDS, st.lists(st.integers(0, 2000), max_size=30))
def test_however_the_bytes_are_split_the_same_is_forwarded(
    payloads: list[bytes], end: bytes, places: list[int]
) -> None:
    data = b"".join(map(chunk, payloads)) + end
    forwarded, seen, rest, _ = feed(cut(data, places))
    assert forwarded + rest == data
    assert forwarded == b"".join(map(chunk, payloads))
    assert seen == payloads


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=10))
def test_of_any_bytes_only_what_mitmproxy_reads_as_the_same_chunks_is_forwarded(data: bytes, places: list[int]) -> None:
    forwarded, seen, rest, _ = feed(cut(data, places))
    assert forwarded + rest == data
    reader, buffer, read = ChunkedReader(), ReceiveBuffer(), b""
    buffer += forwarded
    while (event := reader(buffer)) is not None:
        assert isinstance(event, h11.Data)
        read += event.data
    assert read == b"".join(seen)
    assert not buffer


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"0\r\n\r\n", id="the last chunk"),
        pytest.param(b"3;a=b\r\nabc\r\n", id="an extension"),
        pytest.param(b"3 \r\nabc\r\n", id="a space"),
        pytest.param(b"x", id="no hex digit"),
        pytest.param(b"\r\n", id="no size"),
        pytest.param(b"3\n", id="a bare line feed"),
        pytest.param(b"000000003", id="many zeros"),
        pytest.param(b"%x\r\n" % (LARGEST_CHUNK + 1), id="a large chunk"),
        pytest.param(b"ffffffff\r\n", id="a huge chunk"),
        pytest.param(b"3\r\nabcd", id="a payload that is longer than its size"),
        pytest.param(b"3\r\nabc\rx", id="a payload without its end"),
    ],
)
def test_what_is_no_plain_chunk_ends_it_as_soon_as_that_shows(data: bytes) -> None:
    splitter = ChunkSplitter()
    assert splitter.feed(chunk(b"before") + data) == (chunk(b"before"), [b"before"])
    assert splitter.ended
    assert splitter.remainder == data


def test_the_largest_chunk_is_taken_in_any_pieces() -> None:
    data = chunk(b"x" * LARGEST_CHUNK)
    assert feed([data[at : at + 7] for at in range(0, len(data), 7)]) == (data, [b"x" * LARGEST_CHUNK], b"", False)


# The relay


@dataclass
class Between:
    """A relay between an agent and a client, which are sockets."""

    agent: socket.socket
    client: socket.socket
    reader: asyncio.StreamReader
    """mitmproxy's, of the agent's connection."""
    upstream: asyncio.StreamWriter
    to_client: asyncio.StreamWriter
    response: http.Response
    seen: list[bytes] = field(default_factory=list)
    activity: int = 0

    def see(self, payload: bytes) -> bytes:
        self.seen.append(payload)
        return payload

    def active(self) -> None:
        self.activity += 1

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.agent, data)

    async def receive(self, size: int) -> bytes:
        data = b""
        async with asyncio.timeout(10):
            while len(data) < size and (some := await asyncio.get_running_loop().sock_recv(self.client, size)):
                data += some
        return data

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.005)

    @property
    def seen_bytes(self) -> int:
        return sum(map(len, self.seen))

    @property
    def in_charge(self) -> bool:
        """Whether the relay no longer has the agent's transport."""
        transport: Any = self.upstream.transport
        return not isinstance(transport.get_protocol(), StreamRelay)


@asynccontextmanager
async def relaying(way: str) -> AsyncIterator[tuple[Between, StreamRelay]]:
    agent, ours = socket.socketpair()
    client, its = socket.socketpair()
    for end in (agent, client):
        end.setblocking(False)
    reader, upstream = await asyncio.open_connection(sock=ours)
    _, to_client = await asyncio.open_connection(sock=its)
    between = Between(agent, client, reader, upstream, to_client, http.Response.make())
    see = between.see
    between.response.stream = see
    transport: Any = upstream.transport
    shortcut = install(asyncio.get_running_loop()) if way == "shortcut" else None
    relay = StreamRelay(transport, to_client, between.response, see, between.active, shortcut)
    assert not between.in_charge
    assert shortcut is None or list(shortcut.receivers) == [ours.fileno()]
    try:
        yield between, relay
    finally:
        relay.stop()
        assert between.in_charge
        assert shortcut is None or not shortcut.receivers
        for writer in (upstream, to_client):
            writer.close()
        for end in (agent, client):
            end.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("slow client")] == []


async def settled() -> None:
    """The loop has taken what was ready, and what came of that."""
    for _ in range(50):
        await asyncio.sleep(0)


type Run = Callable[[Callable[[Between, StreamRelay], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=["shortcut", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test with what comes taken from the selector, or by asyncio."""
    if request.param == "shortcut" and not hasattr(selectors, "EpollSelector"):
        pytest.skip("asyncio has no epoll here")

    def run(test: Callable[[Between, StreamRelay], Coroutine[Any, Any, None]]) -> None:
        async def with_relay() -> None:
            async with relaying(request.param) as (between, relay):
                await test(between, relay)

        asyncio.run(with_relay())

    return run


def test_whole_chunks_go_out_as_they_came_and_are_seen_and_count_as_activity(run: Run) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        await between.send(chunk(b"one") + chunk(b"two")[:4])
        assert await between.receive(8) == chunk(b"one")
        await between.send(chunk(b"two")[4:])
        assert await between.receive(8) == chunk(b"two")
        assert between.activity >= 1
        assert not between.in_charge
        relay.stop()
        assert b"".join(between.seen) == b"onetwo"

    run(test)


def test_the_last_chunk_and_all_after_it_are_left_to_mitmproxy(run: Run) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        await between.send(chunk(b"one") + b"0\r\n\r\nmore")
        assert await between.receive(8) == chunk(b"one")
        assert between.in_charge
        assert await between.reader.readexactly(9) == b"0\r\n\r\nmore"
        await between.send(b"still more")
        assert await between.reader.readexactly(10) == b"still more"
        assert between.seen == [b"one"]

    run(test)


@pytest.mark.parametrize("rest", [b"", b"5", b"5\r\nab"])
def test_mitmproxy_sees_the_end_of_the_connection_and_first_what_came_of_a_chunk(run: Run, rest: bytes) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        await between.send(chunk(b"one") + rest)
        assert await between.receive(8) == chunk(b"one")
        between.agent.shutdown(socket.SHUT_WR)
        assert await between.reader.read() == rest
        assert between.in_charge

    run(test)


def test_a_transport_that_is_closed_closes_for_mitmproxy(run: Run) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        await between.send(b"5\r\nab")
        await between.until(lambda: between.activity == 1)
        between.upstream.close()
        await between.upstream.wait_closed()
        assert between.in_charge
        assert await between.reader.read() == b"5\r\nab"

    run(test)


def test_a_broken_connection_breaks_for_mitmproxy(run: Run) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        transport: Any = between.upstream.transport
        transport._fatal_error(ConnectionResetError("broken"))
        with pytest.raises(ConnectionResetError, match="broken"):
            await between.reader.read()

    run(test)


def test_a_client_that_takes_nothing_holds_the_agent_up_and_one_that_goes_on_gets_everything(run: Run) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        one = chunk(b"x" * 5000)
        sending = asyncio.create_task(between.send(one * 1000))
        upstream: Any = between.upstream.transport
        await between.until(lambda: not upstream.is_reading())
        held = between.to_client.transport.get_write_buffer_size()
        await settled()
        assert between.to_client.transport.get_write_buffer_size() == held
        assert held < 200_000
        assert not sending.done()
        received = bytearray()
        while len(received) < len(one) * 1000:
            received += await between.receive(min(30_000, len(one) * 1000 - len(received)))
        assert received == one * 1000
        await sending
        assert upstream.is_reading()
        assert not between.in_charge
        relay.stop()
        assert between.seen_bytes == 5000 * 1000

    run(test)


def test_chunks_are_seen_some_at_a_time(run: Run) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        await between.send(chunk(b"x") * (BATCH - 1))
        await between.receive(6 * (BATCH - 1))
        assert between.seen == []
        await between.send(chunk(b"y"))
        await between.until(lambda: bool(between.seen))
        await between.send(chunk(b"z" * BATCH_BYTES))
        await between.until(lambda: len(between.seen) == 2)
        assert between.seen == [b"x" * (BATCH - 1) + b"y", b"z" * BATCH_BYTES]

    run(test)


def test_when_it_stops_while_the_client_is_slow_mitmproxy_reads_on(run: Run) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        sending = asyncio.create_task(between.send(chunk(b"x" * 5000) * 1000))
        upstream: Any = between.upstream.transport
        await between.until(lambda: not upstream.is_reading())
        relay.stop()
        assert upstream.is_reading()
        await between.reader.readexactly(100_000)
        sending.cancel()

    run(test)


def test_a_client_that_breaks_off_while_it_is_slow_leaves_nothing_behind(run: Run) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        sending = asyncio.create_task(between.send(chunk(b"x" * 5000) * 1000))
        upstream: Any = between.upstream.transport
        await between.until(lambda: not upstream.is_reading())
        between.to_client.transport.abort()
        await settled()
        assert not upstream.is_reading()  # it is mitmproxy's to close it
        sending.cancel()

    run(test)


@pytest.mark.parametrize("why", ["another stream", "closing"])
def test_when_another_sees_the_answer_or_the_client_is_closed_mitmproxy_gets_all(run: Run, why: str) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        await between.send(chunk(b"one") + b"3\r\n")
        assert await between.receive(8) == chunk(b"one")
        if why == "closing":
            between.to_client.close()
        else:
            between.response.stream = lambda data: data.upper()
        await between.send(b"two\r\n")
        assert await between.reader.readexactly(8) == chunk(b"two")
        assert between.in_charge
        assert between.seen == [b"one"]

    run(test)


def test_what_an_event_loop_still_hands_to_a_relay_that_has_stopped_is_mitmproxys(run: Run) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        relay.stop()
        relay.stop()
        relay.get_buffer(-1)[:3] = b"abc"
        relay.buffer_updated(3)
        assert await between.reader.readexactly(3) == b"abc"

    run(test)


def test_the_agents_writer_is_paused_as_ever(run: Run) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        between.upstream.write(b"x" * 10_000_000)
        draining = asyncio.create_task(between.upstream.drain())
        await settled()
        assert not draining.done()
        taken = 0
        while taken < 10_000_000:
            taken += len(await asyncio.get_running_loop().sock_recv(between.agent, 1_000_000))
        await draining

    run(test)


def test_a_client_that_is_gone_is_found_gone(run: Run) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        between.client.close()
        await between.send(chunk(b"one"))
        await between.until(between.to_client.is_closing)
        await between.send(chunk(b"two"))
        assert await between.reader.readexactly(8) == chunk(b"two")
        assert between.in_charge

    run(test)


def test_a_fault_of_what_watches_ends_the_agents_connection_and_is_told(run: Run) -> None:
    async def test(between: Between, relay: StreamRelay) -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

        def fail(payload: bytes) -> bytes:
            raise ValueError("the watcher's fault")

        between.response.stream = relay._pass_on = fail
        await between.send(chunk(b"x" * BATCH_BYTES))
        await between.until(lambda: between.in_charge)
        assert between.upstream.is_closing()
        assert [str(context["exception"]) for context in told[:1]] == ["the watcher's fault"]
        relay._pass_on = between.see

    run(test)


@pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="asyncio has no epoll here")
def test_of_an_agent_that_sends_all_the_time_is_told_now_and_then() -> None:
    async def test() -> None:
        async with relaying("shortcut") as (between, relay):
            for now, heard in [(0, 1), (0, 1), (ACTIVITY_SECONDS / 2, 1), (ACTIVITY_SECONDS, 2), (99, 3), (99, 3)]:
                between.agent.send(chunk(b"word"))
                assert relay.receive(now) is False
                assert between.activity == heard
            assert relay.receive(200) is False  # nothing has come
            assert between.activity == 3

    asyncio.run(test())
