"""Streamed answers go past mitmproxy's layers, and nobody but the processor can tell."""

from __future__ import annotations

import asyncio
import json
import queue
import selectors
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from tests.e2e.harness import PATIENCE, Hosts, Proxy, RawHost, running_proxy, wait_until
from tests.e2e.web import running_mitmweb

TAGS = b'{"models":[{"name":"m"}]}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b'{"model":"m","response":"","done":true}\n'
END = b"0\r\n\r\n"


def line(text: str) -> bytes:
    return b'{"model":"m","response":"%s","done":false}\n' % text.encode()


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def payload(body: bytes) -> bytes:
    """What is in the chunks of a body."""
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return whole


FIRST = chunk(line("first"))


class DrivenHost(RawHost):
    """A host whose answers the test sends. `asked` gets the connection of each prompt."""

    def __init__(self, hosts: Hosts, head: bytes = HEAD) -> None:
        self.asked: queue.Queue[asyncio.StreamWriter] = queue.Queue()
        self.connections: set[asyncio.StreamWriter] = set()
        """Those on which a prompt came, as long as they are open."""
        self.all_connections = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    asked = await reader.readuntil(b"\r\n\r\n")
                    lines = asked.lower().split(b"\r\n")
                    length = sum(int(each[15:]) for each in lines if each.startswith(b"content-length:"))
                    await reader.readexactly(length)
                    if asked.startswith(b"GET"):
                        text = b'{"version":"1.0"}' if b"/api/version" in asked else TAGS
                        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
                        continue
                    if writer not in self.connections:
                        self.all_connections += 1
                        self.connections.add(writer)
                    writer.write(head + FIRST)
                    self.asked.put(writer)
            finally:
                self.connections.discard(writer)

        super().__init__(hosts, serve)

    def send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        async def write() -> None:
            writer.write(data)
            await writer.drain()

        self.owner.run(write())

    def cut(self, writer: asyncio.StreamWriter, *, reset: bool = False) -> None:
        async def close() -> None:
            if reset:
                ours = writer.get_extra_info("socket")
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()

        self.owner.run(close())


class Client:
    """One connection of a client, byte for byte; closed when it is left."""

    def __init__(self, proxy: Proxy, *, window: int = 0) -> None:
        """`window`: bytes that the system takes for the client at most, about; 0: as many as it likes."""
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        if window:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.socket.connect(("127.0.0.1", proxy.port))
        self.got = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, version: str = "1.1", header: str = "") -> None:
        body = b'{"model": "m", "prompt": "x"}'
        head = f"POST /api/generate HTTP/{version}\r\nHost: x\r\n{header}Content-Length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)

    def until(self, mark: bytes) -> bytes:
        """All up to the mark and the mark; what comes after it is kept."""
        while mark not in self.got:
            piece = self.socket.recv(65536)
            assert piece, self.got
            self.got += piece
        before, _, self.got = self.got.partition(mark)
        return before + mark

    def begin(self, host: DrivenHost) -> asyncio.StreamWriter:
        """Ask, and have the first chunk. From then on it is relayed, if it is."""
        self.ask()
        assert b"X-Balancer-Agent: raw\r\n" in self.until(b"\r\n\r\n")
        assert self.until(FIRST) == FIRST
        return host.asked.get(timeout=PATIENCE)


@pytest.fixture(scope="module")
def host() -> Iterator[DrivenHost]:
    hosts = Hosts()
    this = DrivenHost(hosts)
    yield this
    this.stop()
    hosts.stop()


@pytest.fixture(scope="module")
def shared_proxy(tmp_path_factory: pytest.TempPathFactory, host: DrivenHost) -> Iterator[Proxy]:
    options = {"balancer_agents": f"raw={host.url}", "balancer_body_limit": "0", "balancer_slots": "20"}
    arguments = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    with running_proxy(tmp_path_factory.mktemp("proxy"), *arguments) as this:
        yield this
        assert "crashed" not in this.log
        assert "Traceback" not in this.log


@pytest.fixture
def proxy(shared_proxy: Proxy, host: DrivenHost) -> Proxy:
    """One that all tests use; nothing runs in it."""
    shared_proxy.wait_online("raw")
    wait_until(lambda: not host.connections and not counts(shared_proxy)["now"], "nothing is left of the test before")
    assert shared_proxy.introspect()["receivers"] == 0
    return shared_proxy


def counts(proxy: Proxy) -> Counter[str]:
    agent: dict[str, Any] = proxy.agents()["raw"]
    ended = {name: agent["stats"][name] for name in ("succeeded", "failed", "cancelled")}
    return Counter(ended | {"now": agent["in_flight"], "relayed": proxy.introspect()["relayed"]})


class Since:
    """What has been counted since this was made: `raw` answers that ended, that run now, and that were relayed."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.before = counts(proxy)

    def is_now(self, **expected: int) -> None:
        """Wait until just that has been counted."""
        wait_until(lambda: counts(self.proxy) - self.before == Counter(expected), f"{expected}", 5)


def test_many_answers_go_over_the_same_two_connections(proxy: Proxy, host: DrivenHost) -> None:
    since, connections = Since(proxy), host.all_connections
    with Client(proxy) as client:
        for number in range(1, 21):
            upstream = client.begin(host)
            second = chunk(line(f"{number}"))
            host.send(upstream, second[:9])
            host.send(upstream, second[9:] + chunk(line("a")) + chunk(line("b")))
            assert client.until(chunk(line("b"))) == second + chunk(line("a")) + chunk(line("b"))
            host.send(upstream, chunk(DONE) + END)
            assert client.until(END) == chunk(DONE) + END
            since.is_now(succeeded=number, relayed=number)
        assert host.all_connections == connections + 1


BODIES = {
    "extensions": ([b"4;a=b\r\nabc\n\r\n", chunk(line("x"))], b"abc\n" + line("x")),
    "large": ([chunk(b"x" * 300_000), chunk(line("x"))], b"x" * 300_000 + line("x")),
    "trailers": ([chunk(DONE) + b"0\r\nX-Trailer: 1\r\n\r\n"], DONE),
    "upper case and zeros": ([b"00A\r\n012345678\n\r\n"], b"012345678\n"),
}


def test_the_payload_is_the_same_with_and_without_it(tmp_path: Path, host: DrivenHost, either_way: bool) -> None:
    with running_proxy(tmp_path, "--set", f"balancer_agents=raw={host.url}") as proxy:
        proxy.wait_online("raw")
        since = Since(proxy)
        for name, (pieces, expected) in BODIES.items():
            with Client(proxy) as client:
                upstream = client.begin(host)
                for piece in pieces:
                    host.send(upstream, piece)
                if name != "trailers":
                    host.send(upstream, chunk(DONE) + END)
                assert payload(client.until(END)).removesuffix(DONE) == expected.removesuffix(DONE), name
        since.is_now(succeeded=4, **({"relayed": 4} if either_way else {}))
        assert "crashed" not in proxy.log


@pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="asyncio has no epoll here")
def test_what_is_relayed_is_taken_from_the_loops_selector(proxy: Proxy, host: DrivenHost) -> None:
    with Client(proxy) as client, Client(proxy) as other:
        upstream = client.begin(host)
        host.send(upstream, chunk(line("a")))
        client.until(chunk(line("a")))
        assert proxy.introspect()["receivers"] == 1
        host.send(other.begin(host), chunk(line("b")))
        other.until(chunk(line("b")))
        assert proxy.introspect()["receivers"] == 2
        host.send(upstream, chunk(DONE) + END)
        client.until(END)
        assert proxy.introspect()["receivers"] == 1


def test_an_agent_that_breaks_off_is_told_of_in_the_stream(proxy: Proxy, host: DrivenHost) -> None:
    for reset in (False, True):
        for partial in (b"", b"2", b"2a\r\n", chunk(line("half"))[:20]):
            since = Since(proxy)
            with Client(proxy) as client:
                upstream = client.begin(host)
                host.send(upstream, chunk(line("second")))
                assert client.until(chunk(line("second"))) == chunk(line("second"))
                host.send(upstream, partial)
                host.cut(upstream, reset=reset)
                last = payload(client.until(END))
                assert last.endswith(b"\n")
                assert "failed in the middle of its answer" in json.loads(last.splitlines()[-1])["error"]
                since.is_now(failed=1, relayed=1)
                host.send(client.begin(host), chunk(DONE) + END)  # over the same connection
                assert client.until(END) == chunk(DONE) + END
                since.is_now(failed=1, succeeded=1, relayed=2)


def test_an_answer_that_ends_without_its_terminal_event_gets_an_error_event(proxy: Proxy, host: DrivenHost) -> None:
    since = Since(proxy)
    with Client(proxy) as client:
        host.send(client.begin(host), chunk(line("second")) + END)
        assert b"without its terminal event" in client.until(END)
    since.is_now(failed=1, relayed=1)


def test_a_malformed_chunk_ends_in_an_error_event(proxy: Proxy, host: DrivenHost) -> None:
    since = Since(proxy)
    with Client(proxy) as client:
        host.send(client.begin(host), chunk(line("second")) + b"nonsense\r\n")
        last = client.until(END)
        assert last.startswith(chunk(line("second")))
        assert b"failed in the middle" in last
    since.is_now(failed=1, relayed=1)


def test_a_client_that_leaves_frees_the_agent_at_once(proxy: Proxy, host: DrivenHost) -> None:
    for partial in (b"", b"5\r\nab"):
        since = Since(proxy)
        with Client(proxy) as client:
            upstream = client.begin(host)
            host.send(upstream, chunk(line("second")) + partial)
            client.until(chunk(line("second")))
            since.is_now(now=1, relayed=1)
        since.is_now(cancelled=1, relayed=1)
        wait_until(lambda: not host.connections, "the agent's connection is closed", 5)
        wait_until(lambda: proxy.introspect()["servers"] == 0, "nothing is left", 5)


def test_slow_clients_hold_their_agent_up_and_the_memory_stays_small(proxy: Proxy, host: DrivenHost) -> None:
    since, process = Since(proxy), psutil.Process(proxy.process.pid)
    one, count = chunk(line("x" * 20_000)), 1500

    async def flood(writer: asyncio.StreamWriter) -> None:
        for _ in range(count):
            writer.write(one)
            await writer.drain()
        writer.write(chunk(DONE) + END)

    with ExitStack() as stack:
        clients = [stack.enter_context(Client(proxy)) for _ in range(8)]
        writers = [client.begin(host) for client in clients]
        before = process.memory_info().rss
        flooding = [asyncio.run_coroutine_threadsafe(flood(writer), host.owner.loop) for writer in writers]
        wait_until(lambda: proxy.introspect()["tasks"].get("slow client") == 8, "all are held up")
        assert not any(task.done() for task in flooding)
        assert process.memory_info().rss - before < 30_000_000
        for client in clients[:4]:
            taken = 0
            while not client.got.endswith(END):
                piece = client.socket.recv(1 << 20)
                assert piece
                taken += len(piece)
                client.got = (client.got + piece)[-len(END) :]
            assert taken == count * len(one) + len(chunk(DONE) + END)
        since.is_now(succeeded=4, now=4, relayed=8)
    since.is_now(succeeded=4, cancelled=4, relayed=8)
    wait_until(lambda: proxy.introspect()["tasks"].get("slow client") is None, "nothing waits for them")
    for task in flooding:
        task.cancel()


def test_two_hundred_streams_to_clients_that_hardly_read_take_little_memory(tmp_path: Path, host: DrivenHost) -> None:
    options = ["--set", f"balancer_agents=raw={host.url}", "--set", "balancer_slots=200"]
    options += ["--set", "balancer_body_limit=0"]  # else 4 MiB of each are kept for its flow
    many = chunk(line("x" * 2000)) * 200

    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        while True:
            writer.write(many)
            await writer.drain()

    with running_proxy(tmp_path, *options) as proxy, ExitStack() as stack:
        proxy.wait_online("raw")
        process = psutil.Process(proxy.process.pid)
        # The system's own buffers are small, so that it takes seconds and not minutes until they are full.
        clients = [stack.enter_context(Client(proxy, window=16_384)) for _ in range(200)]
        writers = [client.begin(host) for client in clients]
        before = process.memory_info().rss
        flooding = [asyncio.run_coroutine_threadsafe(flood(writer), host.owner.loop) for writer in writers]
        for _ in range(5):
            wait_until(lambda: proxy.introspect()["tasks"].get("slow client") == 200, "all are held up", 4 * PATIENCE)
            assert process.memory_info().rss - before < 200 * 250_000
            for client in clients:
                assert len(client.socket.recv(1000)) == 1000
        for client in clients:
            client.socket.close()
        wait_until(lambda: proxy.agents()["raw"]["in_flight"] == 0, "all have left")
        state = proxy.introspect()
        assert state["tasks"].get("slow client") is None
        assert state["contexts"] == state["receivers"] == 0
        for task in flooding:
            task.cancel()


def test_agents_that_send_without_pause_hold_nobody_up(proxy: Proxy, host: DrivenHost) -> None:
    since, enough = Since(proxy), threading.Event()
    many = chunk(line("word")) * 4000

    async def flood(writer: asyncio.StreamWriter) -> None:
        while not enough.is_set():
            writer.write(many)
            await writer.drain()
        writer.write(chunk(DONE) + END)

    def take_all(client: Client) -> bool:
        while not client.got.endswith(END):
            client.got = (client.got + client.socket.recv(1 << 20))[-len(END) :]
        return True

    with ExitStack() as stack:
        clients = [stack.enter_context(Client(proxy)) for _ in range(3)]
        pool = stack.enter_context(ThreadPoolExecutor())
        stack.callback(enough.set)
        for client in clients:
            asyncio.run_coroutine_threadsafe(flood(client.begin(host)), host.owner.loop)
        taking = [pool.submit(take_all, client) for client in clients]
        since.is_now(now=3, relayed=3)
        for _ in range(5):
            assert proxy.http.get("/health").status_code == 200
            with Client(proxy) as other:
                upstream = other.begin(host)
                host.send(upstream, chunk(line("meanwhile")) + chunk(DONE) + END)
                assert other.until(END) == chunk(line("meanwhile")) + chunk(DONE) + END
        assert not any(each.done() for each in taking)
        enough.set()
        assert all(each.result(PATIENCE) for each in taking)
        since.is_now(succeeded=8, relayed=8)


def test_what_a_client_sends_while_it_gets_an_answer_waits_for_its_end(proxy: Proxy, host: DrivenHost) -> None:
    since = Since(proxy)
    with Client(proxy) as client:
        upstream = client.begin(host)
        client.ask()
        host.send(upstream, chunk(line("second")))
        assert client.until(chunk(line("second"))) == chunk(line("second"))
        host.send(upstream, chunk(DONE) + END)
        assert client.until(END) == chunk(DONE) + END
        client.until(FIRST)
        host.send(host.asked.get(timeout=PATIENCE), chunk(DONE) + END)
        assert client.until(END) == chunk(DONE) + END
        since.is_now(succeeded=2, relayed=2)


def test_what_an_agent_sends_after_the_end_reaches_nobody(proxy: Proxy, host: DrivenHost) -> None:
    since, connections = Since(proxy), host.all_connections
    with Client(proxy) as client:
        host.send(client.begin(host), chunk(DONE) + END + HEAD + chunk(line("smuggled")) + END)
        assert client.until(END) == chunk(DONE) + END
        host.send(client.begin(host), chunk(DONE) + END)
        assert client.until(END) == chunk(DONE) + END
        assert client.got == b""
        assert host.all_connections == connections + 2
    since.is_now(succeeded=2, relayed=2)


def test_a_killed_answer_is_cut(tmp_path: Path, host: DrivenHost) -> None:
    with running_mitmweb(tmp_path, "--set", f"balancer_agents=raw={host.url}") as (proxy, web):
        proxy.wait_online("raw")
        since = Since(proxy)
        with Client(proxy) as client:
            upstream = client.begin(host)
            host.send(upstream, chunk(line("second")))
            client.until(chunk(line("second")))
            (flow,) = web.flows("generate")
            web.act(flow["id"], "kill")
            assert client.socket.recv(1000) == b""
            since.is_now(cancelled=1, relayed=1)
            wait_until(lambda: not host.connections, "the agent's connection is closed", 5)
        assert web.content(flow["id"]) == line("first") + line("second")


SWITCHING = """
from mitmproxy import ctx, http


def requestheaders(flow):
    if flow.request.path.startswith("/set/"):
        ctx.options.set(flow.request.path.removeprefix("/set/"))
        flow.response = http.Response.make(204)


def responseheaders(flow):
    if "x-shout" in flow.request.headers:
        flow.response.stream = lambda data: data.upper()
"""


def test_it_is_switched_for_new_answers_and_keeps_off_what_others_stream(tmp_path: Path, host: DrivenHost) -> None:
    script = tmp_path / "switching.py"
    script.write_text(SWITCHING)
    with running_proxy(tmp_path, "--set", f"balancer_agents=raw={host.url}", "-s", str(script)) as proxy:
        proxy.wait_online("raw")

        def relayed(version: str = "1.1", header: str = "", last: bytes = DONE) -> bool:
            before = proxy.introspect()["relayed"]
            with Client(proxy) as client:
                client.ask(version, header)
                client.until(chunk(line("first").upper() if header else line("first")))
                host.send(host.asked.get(timeout=PATIENCE), chunk(DONE) + END)
                assert client.until(END) == chunk(last) + END
            return bool(proxy.introspect()["relayed"] > before)

        def receives() -> int:
            """Relays that go past asyncio while an answer runs."""
            with Client(proxy) as client:
                client.ask()
                client.until(chunk(line("first")))
                number: int = proxy.introspect()["receivers"]
                host.send(host.asked.get(timeout=PATIENCE), chunk(DONE) + END)
                client.until(END)
                return number

        def switch(option: str) -> None:
            assert proxy.http.get(f"/set/{option}").status_code == 204

        assert relayed()
        assert not relayed("1.0")
        assert not relayed(header="X-Shout: 1\r\n", last=DONE.upper())
        switch("balancer_relay=false")
        assert not relayed()
        switch("balancer_relay=true")
        by_selector = int(hasattr(selectors, "EpollSelector"))
        assert receives() == by_selector
        switch("balancer_relay_selector=false")
        assert relayed()
        assert receives() == 0
        switch("balancer_relay_selector=true")
        assert receives() == by_selector
        switch("store_streamed_bodies=true")
        assert not relayed()
        switch("store_streamed_bodies=false")
        assert relayed()
