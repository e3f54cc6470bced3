"""A lean stand-in for Ollama hosts, so that the proxy is what is measured: `python upstream.py HOSTS`.

Listens on that many free ports of 127.0.0.1, prints them as JSON, and ends when its standard input does. It knows
GET /api/version, /api/tags and /api/ps, and POST /api/chat. A streamed answer has `options.num_predict` chunks, one
each `options.interval_ms`; each carries its send time in `t` (nanoseconds of the system's monotonic clock). Between
POST /hold and POST /release, streams do not end.
"""

from __future__ import annotations

import asyncio
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
_WORD = '{"model":"bench:latest","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":" word"},'
_DONE = b'"done":true,"done_reason":"stop","total_duration":1000000000,"eval_count":%d,"eval_duration":1000000000}\n'
_CHUNK = _WORD.encode() + b'"done":false,"t":%d}\n'
_LAST = _WORD.encode() + _DONE

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


class HostConnection(Connection):
    holding: ClassVar[bool] = False
    held: ClassVar[dict[HostConnection, int]] = {}
    """Whose stream lacks but its end, with the number of its chunks."""

    timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.held.pop(self, None)
        if self.timer is not None:
            self.timer.cancel()

    def request(self, method: str, path: str, body: bytes) -> None:
        if method == "GET" and path in _GET:
            self.transport.write(answer(200, b"OK", json.dumps(_GET[path]).encode()))
        elif method == "POST" and path == "/api/chat":
            self.chat(json.loads(body))
        elif method == "POST" and path in ("/hold", "/release"):
            HostConnection.holding = path == "/hold"
            self.transport.write(answer(200, b"OK", b"{}"))
            while self.held and not self.holding:
                connection, total = self.held.popitem()
                connection.end(total)
        else:
            self.transport.write(answer(404, b"Not Found", b'{"error":"not found"}'))

    def chat(self, request: dict[str, Any]) -> None:
        if request.get("stream") is False:
            self.transport.write(answer(200, b"OK", _LAST % 1))
            return
        options = request["options"]
        self.transport.write(_STREAM_HEAD)
        self.stream(self.loop.time(), 0, options["num_predict"], options["interval_ms"] / 1000)

    def stream(self, started: float, sent: int, total: int, interval: float) -> None:
        """Send what is due: the pace is kept over the whole stream, whatever one wake-up is late by."""
        now = self.loop.time()
        while sent < total and started + sent * interval <= now:
            chunk = _CHUNK % time.monotonic_ns()
            self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            sent += 1
        if sent < total:
            due = started + sent * interval
            self.timer = self.loop.call_at(due, self.stream, started, sent, total, interval)
        elif self.holding:
            self.held[self] = total
        else:
            self.end(total)

    def end(self, total: int) -> None:
        last = _LAST % total
        self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))


def dechunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        body, data = body + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return body


async def main(hosts: int) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(HostConnection, "127.0.0.1", 0, backlog=1024) for _ in range(hosts)]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
