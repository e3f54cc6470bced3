"""A lean stand-in for Ollama hosts, so that the proxy is what is measured: `python upstream.py HOSTS`.

Listens on that many free ports of 127.0.0.1, prints them as JSON, and ends when its standard input does. It knows
GET /api/version, /api/tags and /api/ps, and POST /api/chat. A streamed answer has `options.num_predict` chunks, one
each `options.interval_ms` (20 where there is none); the text of each is its send time, `t=` and nanoseconds of the
system's monotonic clock. Between POST /hold and POST /release, streams do not end.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import sys
import time
from typing import Any, ClassVar

MODEL = "bench:latest"

_ENTRY = {
    "name": MODEL,
    "model": MODEL,
    "modified_at": "2026-01-01T00:00:00Z",
    "size": 4_000_000_000,
    "digest": "0" * 64,
    "details": {"format": "gguf", "family": "bench", "parameter_size": "8B", "quantization_level": "Q4_K_M"},
}
_WORD = b'{"model":"bench:latest","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"%b"},'
_DONE = b'"done":true,"done_reason":"stop","total_duration":1000000000,"eval_count":%d,"eval_duration":1000000000}\n'
_CHUNK = (_WORD % b"t=%d ") + b'"done":false}\n'
_LAST = (_WORD % b"") + _DONE

_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
_HEAD = b"HTTP/1.1 %d %b\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n"

_GET = {
    "/api/version": {"version": "0.12.0"},
    "/api/tags": {"models": [_ENTRY]},
    "/api/ps": {"models": [_ENTRY]},
}


def answer(status: int, reason: bytes, body: bytes) -> bytes:
    return _HEAD % (status, reason, len(body)) + body


class Connection(asyncio.Protocol):
    """A client's connection: reads its requests, which a subclass answers."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].decode("latin-1")
            request_line, *lines = head.split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            size = int(headers.get("content-length", 0))
            if "chunked" in headers.get("transfer-encoding", ""):
                stop = self.buffer.find(b"\r\n0\r\n\r\n", end)
                if stop < 0:
                    return
                body, rest = dechunked(self.buffer[end + 4 : stop + 2]), self.buffer[stop + 7 :]
            elif len(self.buffer) < end + 4 + size:
                return
            else:
                body, rest = self.buffer[end + 4 : end + 4 + size], self.buffer[end + 4 + size :]
            self.buffer = rest
            method, path, _ = request_line.split(" ", 2)
            self.request(method, path, body)

    def request(self, method: str, path: str, body: bytes) -> None:
        raise NotImplementedError


class Pace:
    """Has each stream send when its next chunk is due. One timer serves all: one for each would cost as much again."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.due: list[tuple[float, int, HostConnection]] = []
        self.timer: asyncio.TimerHandle | None = None
        self.number = 0

    def add(self, connection: HostConnection) -> None:
        due = connection.send_due(self.loop.time())
        if due is None:
            return
        self.number += 1
        heapq.heappush(self.due, (due, self.number, connection))
        if self.timer is None or due < self.timer.when():
            self._wake_for_next()

    def _wake_for_next(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_at(self.due[0][0], self._send) if self.due else None

    def _send(self) -> None:
        due, now = self.due, self.loop.time()
        while due and due[0][0] <= now:
            _, number, connection = due[0]
            following = connection.send_due(now)
            if following is None:
                heapq.heappop(due)
            else:
                heapq.heapreplace(due, (following, number, connection))
        self._wake_for_next()


class HostConnection(Connection):
    holding: ClassVar[bool] = False
    held: ClassVar[set[HostConnection]] = set()
    """Whose stream lacks but its end."""

    started: float
    interval: float
    sent: int
    total: int

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace

    def connection_lost(self, exc: Exception | None) -> None:
        self.held.discard(self)

    def request(self, method: str, path: str, body: bytes) -> None:
        if method == "GET" and path in _GET:
            self.transport.write(answer(200, b"OK", json.dumps(_GET[path]).encode()))
        elif method == "POST" and path == "/api/chat":
            self.chat(json.loads(body))
        elif method == "POST" and path in ("/hold", "/release"):
            HostConnection.holding = path == "/hold"
            self.transport.write(answer(200, b"OK", b"{}"))
            while self.held and not self.holding:
                self.held.pop().end()
        else:
            self.transport.write(answer(404, b"Not Found", b'{"error":"not found"}'))

    def chat(self, request: dict[str, Any]) -> None:
        if request.get("stream") is False:
            self.transport.write(answer(200, b"OK", _LAST % 1))
            return
        options = request["options"]
        self.transport.write(_STREAM_HEAD)
        self.started, self.interval = self.loop.time(), options.get("interval_ms", 20) / 1000
        self.sent, self.total = 0, options["num_predict"]
        self.pace.add(self)

    def send_due(self, now: float) -> float | None:
        """Send what is due, and say when the next chunk is; None: none is.

        The pace is kept over the whole stream, whatever one wake-up is late by.
        """
        if self.transport.is_closing():
            return None
        while self.sent < self.total:
            due = self.started + self.sent * self.interval
            if due > now:
                return due
            chunk = _CHUNK % time.monotonic_ns()
            self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            self.sent += 1
        if self.holding:
            self.held.add(self)
        else:
            self.end()
        return None

    def end(self) -> None:
        last = _LAST % self.total
        self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))


def dechunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        body, data = body + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return body


async def main(hosts: int) -> None:
    loop = asyncio.get_running_loop()
    pace = Pace()
    servers = [
        await loop.create_server(lambda: HostConnection(pace), "127.0.0.1", 0, backlog=1024) for _ in range(hosts)
    ]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
