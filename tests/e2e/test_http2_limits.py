"""HTTP/2 clients whose windows have no room, and floods of frames."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h2.errors
import h2.events
import h2.settings
import psutil
import pytest

from tests.e2e.clients import Http2Client
from tests.e2e.harness import Hosts, Proxy, RawHost, running_proxy, wait_until

VERSION = b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"version":"1.0"}'
TAGS = b'HTTP/1.1 200 OK\r\nContent-Length: 25\r\n\r\n{"models":[{"name":"m"}]}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE = b'{"model":"m","response":"%s","done":false}\n' % (b"x" * 32_000)
CHUNK = b"%x\r\n%s\r\n" % (len(LINE), LINE)
LAST = b'{"model":"m","response":"","done":true}\n'
END = b"%x\r\n%s\r\n0\r\n\r\n" % (len(LAST), LAST)

MEBIBYTE = 1024 * 1024


class FastHost:
    """Answers each prompt with chunks as fast as they are taken, `most` of them."""

    def __init__(self, hosts: Hosts, most: int = 10**6) -> None:
        self.sent = 0
        self.most = most
        self.host = RawHost(hosts, self._serve)
        self.url = self.host.url

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                writer.write(VERSION if b"version" in head else TAGS)
                continue
            lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(lengths[0] if lengths else 0)
            writer.write(HEAD)
            for _ in range(self.most):
                writer.write(CHUNK)
                await writer.drain()
                self.sent += len(CHUNK)
            writer.write(END)


@pytest.fixture
def fast(hosts: Hosts) -> Iterator[FastHost]:
    host = FastHost(hosts)
    yield host
    host.host.stop()


def resident(proxy: Proxy) -> int:
    """Bytes of memory of the proxy's process."""
    size: int = psutil.Process(proxy.process.pid).memory_info().rss
    return size


def still(host: FastHost) -> int:
    """How much the host has sent when it gets rid of no more."""
    last = [-1, 0]

    def stands() -> bool:
        last[1] = last[1] + 1 if host.sent == last[0] and host.sent else 0
        last[0] = host.sent
        return last[1] >= 25  # half a second

    wait_until(stands, "the host is held up")
    return host.sent


def without_windows(proxy: Proxy, size: int = 0) -> Http2Client:
    client = Http2Client(proxy)
    client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: size})
    client.socket.sendall(client.connection.data_to_send())
    return client


@pytest.mark.parametrize("window", [0, 100_000])
def test_a_host_is_read_no_further_than_an_http2_client_has_room_for(
    tmp_path: Path, hosts: Hosts, fast: FastHost, window: int
) -> None:
    one = hosts.start("one")
    with running_proxy(tmp_path, "--set", f"balancer_agents=fast={fast.url},one={one.url}") as proxy:
        proxy.wait_online("fast", "one")
        before = resident(proxy)
        client = without_windows(proxy, window)
        for _ in range(4):
            client.send("/api/generate", {"model": "m", "prompt": "x"})
        sent = still(fast)
        assert sent < 24 * MEBIBYTE + 4 * window  # most of it is in the buffers of the sockets
        assert resident(proxy) - before < 24 * MEBIBYTE
        assert proxy.generate().status_code == 200  # others are served
        client.leave()
        wait_until(lambda: proxy.agents()["fast"]["in_flight"] == 3, "the one that was reset is over")
        client.close()
        wait_until(lambda: proxy.agents()["fast"]["in_flight"] == 0, "all are over")
        wait_until(lambda: proxy.introspect()["servers"] <= 1, "no connection is left")


def test_a_window_that_opens_late_gets_the_whole_answer(tmp_path: Path, hosts: Hosts, fast: FastHost) -> None:
    fast.most = 400
    with running_proxy(tmp_path, "--set", f"balancer_agents=fast={fast.url}") as proxy:
        proxy.wait_online("fast")
        client = without_windows(proxy)
        client.send("/api/generate", {"model": "m", "prompt": "x"})
        still(fast)
        assert fast.sent < 400 * len(CHUNK)
        client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 65_535})
        client.socket.sendall(client.connection.data_to_send())
        received = bytearray()
        ended = False
        while not ended:
            for event in client.events():
                if isinstance(event, h2.events.DataReceived):
                    received += event.data
                    client.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                ended = ended or isinstance(event, h2.events.StreamEnded)
            client.socket.sendall(client.connection.data_to_send())
        client.close()
        assert received == LINE * 400 + LAST


def ping(client: Http2Client, number: int) -> None:
    client.connection.ping(number.to_bytes(8))


def settings(client: Http2Client, number: int) -> None:
    client.connection.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: number + 1})


def priority(client: Http2Client, number: int) -> None:
    client.connection.prioritize(1, weight=1 + number % 200)


def reset(client: Http2Client, number: int) -> None:
    stream = client.connection.get_next_available_stream_id()
    head = [(":method", "GET"), (":path", "/api/version"), (":scheme", "https"), (":authority", "x")]
    client.connection.send_headers(stream, head, end_stream=True)
    client.connection.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)


@pytest.mark.parametrize("frame", [ping, settings, priority, reset])
def test_a_flood_of_frames_closes_the_connection_with_one_line(tmp_path: Path, hosts: Hosts, frame: object) -> None:
    one = hosts.start("one")
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={one.url}") as proxy:
        proxy.wait_online("one")
        over = threading.Event()

        def be_served() -> int:
            served = 0
            while not over.is_set() or not served:
                assert proxy.http.get("/health").status_code == 200
                served += 1
            return served

        pool = ThreadPoolExecutor(1)
        victim = pool.submit(be_served)
        client = Http2Client(proxy)
        for number in range(12_000):
            frame(client, number)  # type: ignore[operator]
        flood = client.connection.data_to_send()
        terminated = None
        try:
            client.socket.sendall(flood)
            while terminated is None:
                for event in client.events():
                    if isinstance(event, h2.events.ConnectionTerminated):
                        terminated = event
        except (OSError, AssertionError):
            pass  # it was closed before all was sent
        finally:
            over.set()
            pool.shutdown()
        if terminated is not None:
            assert terminated.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
        client.close()
        assert victim.result(), "others are served meanwhile"
        wait_until(lambda: "too many control frames" in proxy.log, "it is told")
        assert proxy.log.count("too many control frames") == 1
        wait_until(lambda: proxy.agents()["one"]["in_flight"] == 0, "nothing runs")


def test_an_honest_client_may_cancel_many_requests_and_ask_whether_somebody_is_there(
    tmp_path: Path, hosts: Hosts
) -> None:
    one = hosts.start("one")
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={one.url}") as proxy:
        proxy.wait_online("one")
        client = Http2Client(proxy)
        for number in range(100):
            reset(client, number)
            ping(client, number)
        client.send("/api/generate", {"model": "llama3.2", "prompt": "x", "stream": False})
        assert client.status() == "200"
        client.close()


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(("x-note", "y" * 70_000), id="a head of more than 64 KiB"),
        pytest.param(("x-note", "a\x1b[2Jb"), id="an escape sequence"),
        pytest.param(("x-note", b"a\xc2\x9bb"), id="a control character beyond ASCII"),
        pytest.param(("x-note", "a\x7fb"), id="DEL"),
        pytest.param((":authority", "a\x1bb"), id="one in the host"),
    ],
)
def test_a_head_that_no_client_may_send_ends_its_connection_alone(
    tmp_path: Path, hosts: Hosts, field: tuple[str, str | bytes]
) -> None:
    one = hosts.start("one")
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={one.url}") as proxy:
        proxy.wait_online("one")
        client = Http2Client(proxy)
        client.connection.config.validate_outbound_headers = False
        head = {":method": "GET", ":path": "/api/version", ":scheme": "https", ":authority": "x"} | dict([field])
        client.connection.send_headers(1, list(head.items()), end_stream=True)
        client.socket.sendall(client.connection.data_to_send())
        terminated = False
        while not terminated:
            for event in client.events():
                assert not isinstance(event, h2.events.ResponseReceived)
                terminated = terminated or isinstance(event, h2.events.ConnectionTerminated)
        client.close()
        after = Http2Client(proxy)
        after.send("/api/generate", {"model": "llama3.2", "prompt": "x", "stream": False})
        assert after.status() == "200"
        after.close()
        assert "Traceback" not in proxy.log
        assert not {"\x1b", "\x7f", "\x9b"} & set(proxy.log)
