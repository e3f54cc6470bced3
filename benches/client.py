"""The load: `python client.py PORT requests CONCURRENCY SECONDS`, `... streams STREAMS SECONDS CHUNKS_PER_SECOND` or
`... told`.

Talks to 127.0.0.1:PORT over raw sockets, with parsing as cheap as can be, so that the proxy is what is measured.
Prints JSON: `sent` requests or chunks, and `ms`, for each one that counts how long it took, in milliseconds: a request
until its answer's last byte, a chunk from the upstream's send to the arrival here; `rate`, requests a second; and
`errors`, the connections on which something was not answered as it should.

With `told` it does what each line of its standard input says, and answers with a line: see `Told`.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any

MODEL = "bench:latest"
WARM_UP_REQUESTS = 10
"""First requests of each connection that are not counted: connecting is not what is measured."""

AT_ONCE = 50
"""Streams that `Told` has begin before it waits for them."""

PATIENCE = 90.0
"""Seconds until what has not come is an error."""

_SENT_AT = re.compile(rb'"t":(\d+)}')
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def chat(port: int, **fields: Any) -> bytes:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Why is the sky blue?"}], **fields})
    head = f"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


class Requester(asyncio.Protocol):
    """Sends one request after the other until the deadline."""

    def __init__(self, request: bytes, seconds: float) -> None:
        self.request = request
        self.seconds = seconds
        self.finished = asyncio.get_running_loop().create_future()
        self.buffer = b""
        self.to_warm_up = WARM_UP_REQUESTS
        self.started = self.ended = 0
        self.taken: list[int] = []
        self.errors = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.sent_at = time.monotonic_ns()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self.buffer, 0, end)
        if length is None:
            self.transport.abort()
            return
        if len(self.buffer) < end + 4 + int(length[1]):
            return
        if not self.buffer.startswith(b"HTTP/1.1 200") or b'"done":true' not in self.buffer:
            self.errors += 1
        self.buffer = b""
        if self.to_warm_up:
            self.to_warm_up -= 1
            self.started = now
        else:
            self.taken.append(now - self.sent_at)
            self.ended = now
            if now - self.started >= self.seconds * 1e9:
                self.transport.close()
                return
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None or not self.taken or self.ended - self.started < self.seconds * 1e9:
            self.errors += 1
        if not self.finished.done():
            self.finished.set_result(None)


class Listener(asyncio.Protocol):
    """Sends one request for a stream and notes each chunk's delay."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.finished = asyncio.get_running_loop().create_future()
        self.buffer = b""
        self.end = b""
        self.whole = False
        self.delays: list[int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self.buffer + data
        cut = data.rfind(b"\n") + 1
        self.delays += [now - int(sent_at) for sent_at in _SENT_AT.findall(data, 0, cut)]
        self.whole = self.whole or b'"done":true' in data
        self.end = (self.end + data[len(self.buffer) :])[-5:]
        self.buffer = data[cut:]
        if self.whole and self.end == b"0\r\n\r\n":
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.end != b"0\r\n\r\n":
            self.whole = False
        if not self.finished.done():
            self.finished.set_result(None)


async def requests(port: int, concurrency: int, seconds: float) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    request = chat(port, stream=False)
    clients: list[Requester] = []
    for _ in range(concurrency):
        _, client = await loop.create_connection(lambda: Requester(request, seconds), "127.0.0.1", port)
        clients.append(client)
    await asyncio.wait([client.finished for client in clients], timeout=seconds + 30)
    return {
        "rate": sum(len(client.taken) * 1e9 / max(client.ended - client.started, 1) for client in clients),
        "sent": sum(len(client.taken) + WARM_UP_REQUESTS for client in clients),
        "ms": [taken / 1e6 for client in clients for taken in client.taken],
        "errors": sum(client.errors + (not client.finished.done()) for client in clients),
    }


async def streams(port: int, count: int, seconds: float, rate: float) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    chunks = round(seconds * rate)
    request = chat(port, stream=True, options={"num_predict": chunks, "interval_ms": 1000 / rate})
    clients: list[Listener] = []
    # Spread over the first half second, as people come: all at once, every chunk would be due at the same moment.
    first = loop.time()
    for number in range(count):
        await asyncio.sleep(max(0.0, first + number * 0.5 / count - loop.time()))
        _, client = await loop.create_connection(lambda: Listener(request), "127.0.0.1", port)
        clients.append(client)
    await asyncio.wait([client.finished for client in clients], timeout=seconds + 60)
    return {
        "sent": count * chunks,
        "ms": [delay / 1e6 for client in clients for delay in client.delays],
        "errors": sum(not client.whole or len(client.delays) != chunks for client in clients),
    }


class Told:
    """Opens streams as it is told: by lines `{"count": COUNT, "chunks": CHUNKS, "until": "sent" | "chunks" | "end"}`.

    So many streams begin, some at a time. The line is answered once their requests are sent, their chunks are there, or
    they have ended as all before them: with `open`, how many have not ended, `errors`, how many were not answered
    as they should, and `said`, what one of those got at last.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.clients: list[Listener] = []
        self.errors = 0
        self.said = ""

    async def open(self, count: int, chunks: int, until: str) -> None:
        request = chat(self.port, stream=True, options={"num_predict": chunks, "interval_ms": 0})
        loop = asyncio.get_running_loop()
        for number in range(1, count + 1):
            _, client = await loop.create_connection(lambda: Listener(request), "127.0.0.1", self.port)
            self.clients.append(client)
            if until != "sent" and (number % AT_ONCE == 0 or number == count):
                await self.wait(chunks, until)
        if until == "end":
            await self.wait(chunks, until)
        for client in self.clients:
            begun = until == "sent" or len(client.delays) == chunks
            ended = client.finished.done() or until != "end"
            if not begun or not ended or (client.finished.done() and not client.whole):
                self.errors += 1
                self.said = client.buffer[-200:].decode(errors="replace")
        self.clients = [client for client in self.clients if not client.finished.done()]

    async def wait(self, chunks: int, until: str) -> None:
        deadline = time.monotonic() + PATIENCE
        for client in self.clients:
            while not client.finished.done() and (until == "end" or len(client.delays) < chunks):
                if time.monotonic() > deadline:
                    return
                await asyncio.sleep(0.01)

    async def run(self) -> None:
        while line := await asyncio.to_thread(sys.stdin.readline):
            await self.open(**json.loads(line))
            print(json.dumps({"open": len(self.clients), "errors": self.errors, "said": self.said}), flush=True)


if __name__ == "__main__":
    if sys.argv[2:] == ["told"]:
        asyncio.run(Told(int(sys.argv[1])).run())
        sys.exit()
    port, kind, number, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    if kind == "requests":
        result = asyncio.run(requests(port, number, seconds))
    else:
        result = asyncio.run(streams(port, number, seconds, float(sys.argv[5])))
    print(json.dumps(result))
