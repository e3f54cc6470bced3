"""Streams that are opened as it is told, by lines `{"count": N, "chunks": N, "until": "sent" | "chunks" | "end"}`.

`python open_streams.py PORT`: so many streams begin, some at a time. A line is answered once their requests are sent,
their chunks are there, or they have ended as all before them: with `open`, how many have not ended, `errors`, how many
were not answered as they should, and `said`, what one of those got at last.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benches.client import OLLAMA, Stream

AT_ONCE = 50
"""Streams that begin before they are waited for."""

PATIENCE = 90.0
"""Seconds until what has not come is an error."""

AT_ONCE_RATE = 1e9
"""Chunks per second: all of them at once."""


class Listener(asyncio.Protocol):
    """Sends one request for a stream and reads the answer."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.stream = Stream(OLLAMA.last)
        self.finished = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.stream.received(data, time.monotonic_ns())
        if self.stream.whole:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self.finished.set_result(None)


class OpenStreams:
    """All that have been opened and have not ended."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.clients: list[Listener] = []
        self.errors = 0
        self.said = ""

    async def open(self, count: int, chunks: int, until: str) -> None:
        request = OLLAMA.chat(self.port, chunks, AT_ONCE_RATE)
        loop = asyncio.get_running_loop()
        for number in range(1, count + 1):
            _, client = await loop.create_connection(lambda: Listener(request), "127.0.0.1", self.port)
            self.clients.append(client)
            if until != "sent" and (number % AT_ONCE == 0 or number == count):
                await self.wait(chunks, until)
        if until == "end":
            await self.wait(chunks, until)
        for client in self.clients:
            begun = until == "sent" or len(client.stream.delays) == chunks
            ended = client.finished.done() or until != "end"
            if not begun or not ended or (client.finished.done() and not client.stream.whole):
                self.errors += 1
                self.said = client.stream.buffer[-200:].decode(errors="replace")
        self.clients = [client for client in self.clients if not client.finished.done()]

    async def wait(self, chunks: int, until: str) -> None:
        deadline = time.monotonic() + PATIENCE
        for client in self.clients:
            while not client.finished.done() and (until == "end" or len(client.stream.delays) < chunks):
                if time.monotonic() > deadline:
                    return
                await asyncio.sleep(0.01)

    async def run(self) -> None:
        while line := await asyncio.to_thread(sys.stdin.readline):
            await self.open(**json.loads(line))
            print(json.dumps({"open": len(self.clients), "errors": self.errors, "said": self.said}), flush=True)


if __name__ == "__main__":
    asyncio.run(OpenStreams(int(sys.argv[1])).run())
