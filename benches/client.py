"""The load: `python client.py PORT requests CONCURRENCY SECONDS` or `... streams STREAMS SECONDS`; `--help` has more.

Talks to 127.0.0.1:PORT over raw sockets, with parsing as cheap as can be, so that the proxy is what is measured.
Prints JSON: `sent` requests or chunks, and `ms`, for each one that counts how long it took, in milliseconds: a request
until its answer's last byte, a chunk from the upstream's send to the arrival here; `rate`, requests a second; and
`errors`, the connections on which something was not answered as it should.

Of streams also: `cut`, how many were not over in time, and `steady`, what happened while all of them ran: `seconds`,
`chunks` that arrived, and the CPU seconds of the processes that `--cpu-of` names and of this one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import selectors
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

MODEL = "bench:latest"
WARM_UP_REQUESTS = 10
"""First requests of each connection that are not counted: connecting is not what is measured."""

KEY = "BENCH_KEY"
"""Environment variable with the key that goes with each request, for a proxy that wants one."""

_SENT_AT = re.compile(rb'"t=(\d+)')
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Api:
    """How a chat is asked for, and what is in the last event of its answer."""

    path: str
    last: bytes

    def chat(self, port: int, chunks: int | None = None, rate: float = 50.0, key: str | None = None) -> bytes:
        """A request for a streamed answer of so many chunks, or for one that is not streamed."""
        fields: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
        fields["stream"] = chunks is not None
        if chunks is not None and self is OLLAMA:
            fields["options"] = {"num_predict": chunks, "interval_ms": 1000 / rate}
        elif chunks is not None:
            fields["max_tokens"] = chunks
        body = json.dumps(fields)
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        if key is not None:
            head += f"Authorization: Bearer {key}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


OLLAMA = Api("/api/chat", b'"done":true')
OPENAI = Api("/v1/chat/completions", b'"finish_reason":"stop"')
APIS = {"ollama": OLLAMA, "openai": OPENAI}


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes, all threads."""
    if sys.platform == "linux":
        # The clock that clock_getcpuclockid() names; /proc has steps of 10 ms, which is too coarse for two seconds.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)
    return sum(times.user + times.system for times in (psutil.Process(pid).cpu_times() for pid in pids))


class Requester(asyncio.Protocol):
    """Sends one request after the other until the deadline."""

    def __init__(self, request: bytes, last: bytes, seconds: float) -> None:
        self.request = request
        self.last = last
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
        if not self.buffer.startswith(b"HTTP/1.1 200") or self.last not in self.buffer:
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


class Stream:
    """One streamed answer: the delay of each chunk, and whether all of it has come."""

    def __init__(self, last: bytes) -> None:
        self.last = last
        self.buffer = b""
        self.end = b""
        self.has_last = False
        self.delays: list[int] = []
        self.first_sent = 0

    def received(self, data: bytes, now: int) -> int:
        """How many chunks were in it; `now` in nanoseconds."""
        self.end = (self.end + data)[-5:]
        if self.buffer:
            data = self.buffer + data
        cut = data.rfind(b"\n") + 1
        sent = _SENT_AT.findall(data, 0, cut)
        if sent and not self.delays:
            self.first_sent = int(sent[0])
        for sent_at in sent:
            self.delays.append(now - int(sent_at))
        self.has_last = self.has_last or self.last in data
        self.buffer = data[cut:]
        return len(sent)

    @property
    def whole(self) -> bool:
        return self.has_last and self.end == b"0\r\n\r\n"

    def missing(self, chunks: int, interval: float, now: int) -> list[int]:
        """The least that chunks are late by that were due and have not come.

        Nothing of a stream that has not begun: nobody knows whether the upstream has been asked for it.
        """
        if not self.delays:
            return []
        waited = [now - self.first_sent - number * interval for number in range(len(self.delays), chunks)]
        return [round(each) for each in waited if each > 0]


@dataclass
class Steady:
    """What happened from when all streams run until the first ends."""

    began: float = 0.0
    ended: float = 0.0
    chunks: int = 0
    cpu: list[float] = field(default_factory=list)


async def requests(port: int, api: Api, key: str | None, concurrency: int, seconds: float) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    request = api.chat(port, key=key)
    clients: list[Requester] = []
    for _ in range(concurrency):
        _, client = await loop.create_connection(lambda: Requester(request, api.last, seconds), "127.0.0.1", port)
        clients.append(client)
    await asyncio.wait([client.finished for client in clients], timeout=seconds + 30)
    return {
        "rate": sum(len(client.taken) * 1e9 / max(client.ended - client.started, 1) for client in clients),
        "sent": sum(len(client.taken) + WARM_UP_REQUESTS for client in clients),
        "ms": [taken / 1e6 for client in clients for taken in client.taken],
        "errors": sum(client.errors + (not client.finished.done()) for client in clients),
    }


class Streams:
    """Many streams at once, without asyncio, which would take half as much time again for a chunk.

    They begin one after the other within `ramp` seconds, as people come: all at once, every chunk would be due at the
    same moment. Those that are not over `patience` seconds after they should be are cut.
    """

    def __init__(self, port: int, request: bytes, last: bytes, cpu_of: Sequence[int]) -> None:
        self.port = port
        self.request = request
        self.last = last
        self.cpu_of = cpu_of
        self.selector = selectors.DefaultSelector()
        self.streams: list[Stream] = []
        self.steady = Steady()
        self.count = self.begun = self.over = self.chunks = 0

    def run(self, count: int, ramp: float, seconds: float, patience: float) -> None:
        self.count = count
        first = time.monotonic()
        deadline = first + ramp + seconds + patience
        while self.over < count:
            now = time.monotonic()
            if now >= deadline:
                return
            following = deadline
            while len(self.streams) < count:
                following = first + len(self.streams) * ramp / count
                if following > now:
                    break
                self._begin()
                following = deadline
            for key, _ in self.selector.select(min(following, deadline) - now):
                self._ready(key)

    def _begin(self) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", self.port))
        stream = Stream(self.last)
        self.streams.append(stream)
        self.selector.register(connection, selectors.EVENT_WRITE, stream)

    def _ready(self, key: selectors.SelectorKey) -> None:
        connection, stream = key.fileobj, key.data
        assert isinstance(connection, socket.socket)
        try:
            if key.events == selectors.EVENT_WRITE:
                connection.send(self.request)
                self.selector.modify(connection, selectors.EVENT_READ, stream)
                return
            data = connection.recv(65536)
        except OSError:
            data = b""
        had = bool(stream.delays)
        self.chunks += stream.received(data, time.monotonic_ns())
        if not had and stream.delays:
            self.begun += 1
            if self.begun == self.count and not self.over:
                self._note()
        if not data or stream.whole:
            if self.steady.began and not self.steady.ended:
                self._note()
            self.over += 1
            self.selector.unregister(connection)
            connection.close()

    def _note(self) -> None:
        """All streams run now, or the first has ended."""
        steady, now, cpu = self.steady, time.monotonic(), [cpu_seconds([pid]) for pid in self.cpu_of]
        cpu.append(time.process_time())
        if not steady.began:
            steady.began, steady.chunks, steady.cpu = now, self.chunks, cpu
        else:
            steady.ended, steady.chunks = now, self.chunks - steady.chunks
            steady.cpu = [after - before for before, after in zip(steady.cpu, cpu, strict=True)]


def streams(options: argparse.Namespace, key: str | None) -> dict[str, Any]:
    count, seconds, rate = options.number, options.seconds, options.rate
    api, chunks = APIS[options.api], round(seconds * rate)
    load = Streams(options.port, api.chat(options.port, chunks, rate, key), api.last, options.cpu_of)
    load.run(count, options.ramp, seconds, options.patience)
    now = time.monotonic_ns()
    delays = [delay for stream in load.streams for delay in stream.delays]
    running = [key.data for key in (load.selector.get_map() or {}).values()]
    for stream in running:
        delays += stream.missing(chunks, 1e9 / rate, now)
    steady = load.steady
    return {
        "sent": load.chunks,
        "ms": [round(delay / 1e6, 3) for delay in delays],
        "cut": len(running),
        "steady": {"seconds": steady.ended - steady.began, "chunks": steady.chunks, "cpu": steady.cpu}
        if steady.ended
        else None,
        "errors": sum(
            not stream.whole or len(stream.delays) != chunks for stream in load.streams if stream not in running
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="client.py")
    parser.add_argument("port", type=int)
    parser.add_argument("kind", choices=["requests", "streams"])
    parser.add_argument("number", type=int, help="connections, or streams")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--api", choices=sorted(APIS), default="ollama", help="how to ask for a chat")
    parser.add_argument("--rate", type=float, default=50.0, help="chunks per second of each stream")
    parser.add_argument("--ramp", type=float, default=0.5, help="seconds within which the streams begin")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds that streams may be late by")
    parser.add_argument("--cpu-of", type=int, nargs="*", default=[], help="processes whose CPU time is taken down")
    options = parser.parse_args()
    key = os.environ.get(KEY)
    if options.kind == "requests":
        result = asyncio.run(requests(options.port, APIS[options.api], key, options.number, options.seconds))
    else:
        result = streams(options, key)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
