"""A stream that runs through a proxy while something is done to it: how long it stood still, and what the proxy took.

The stream's host and its client are processes of their own, so that no work of the test's holds them up:
`python beside.py` is the host, which sends a line each PAUSE without an end, `python beside.py PORT PID` the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

MODEL = "beside"
PAUSE = 0.01
SAMPLE_SECONDS = 0.005
"""Between two looks at the proxy's memory."""

LINE = b'{"model":"beside","created_at":"2026-01-31T12:00:00Z","response":"x","done":false}\n'
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Cost:
    """What became of the stream and of the proxy's process."""

    gap: float
    """Seconds of the longest time between two lines of the stream, less PAUSE."""
    cpu: float
    """Seconds of CPU of the proxy's process; the stream's own part is a percent of the time or two."""
    peak: int
    """Bytes by which the process was larger at its largest."""
    growth: int
    """Bytes by which it is larger at the end."""
    ended: bool
    """Whether the stream broke off."""
    seconds: float
    """That it took."""


class Beside:
    """The client of the stream."""

    def __init__(self, port: int, pid: int) -> None:
        self._client = subprocess.Popen(
            [sys.executable, __file__, str(port), str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._ask("begin") is not None

    def _ask(self, order: str) -> dict[str, float]:
        assert self._client.stdin and self._client.stdout
        print(order, file=self._client.stdin, flush=True)
        told: dict[str, float] = json.loads(self._client.stdout.readline())
        return told

    def begin(self) -> None:
        self._before = self._ask("begin")
        self._began = time.monotonic()

    def end(self) -> Cost:
        seconds = time.monotonic() - self._began
        after, before = self._ask("end"), self._before
        return Cost(
            gap=after["gap"],
            cpu=after["cpu"] - before["cpu"],
            peak=int(after["peak"] - before["memory"]),
            growth=int(after["memory"] - before["memory"]),
            ended=bool(after["ended"]),
            seconds=seconds,
        )

    def calm(self, seconds: float = 1.0) -> Cost:
        """What the machine does by itself."""
        self.begin()
        time.sleep(seconds)
        return self.end()

    def close(self) -> None:
        self._client.kill()
        self._client.communicate()


@contextlib.contextmanager
def stream_host() -> Iterator[str]:
    """A host that has MODEL; its URL."""
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout
        try:
            yield f"http://127.0.0.1:{host.stdout.readline().strip()}"
        finally:
            host.kill()


@contextlib.contextmanager
def stream_beside(port: int, pid: int) -> Iterator[Beside]:
    """A stream through the proxy on that port, whose process is `pid`. One of its agents is a `stream_host`."""
    beside = Beside(port, pid)
    try:
        yield beside
    finally:
        beside.close()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                listing = b'{"models":[{"name":"%s"}],"version":"0.33.0"}' % MODEL.encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(listing), listing))
                continue
            writer.write(CHUNKED)
            if not head.startswith(b"POST /api/generate"):
                writer.write(b"14\r\n" + b'{"status":"success"}' + b"\r\n0\r\n\r\n")
                return
            while True:
                writer.write(b"%x\r\n%s\r\n" % (len(LINE), LINE))
                await writer.drain()
                await asyncio.sleep(PAUSE)


async def _run_host() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class _Client:
    def __init__(self, port: int, process: psutil.Process) -> None:
        self._process = process
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._ended = False
        self._longest, self._last, self._peak = 0.0, time.monotonic(), 0

    def run(self) -> None:
        body = b'{"model":"%s","prompt":"x"}' % MODEL.encode()
        head = b"POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._socket.sendall(head + body)
        self._read_on()
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._sample, daemon=True).start()
        for order in sys.stdin:
            if order == "begin\n":
                self._longest, self._peak = 0.0, 0
            print(json.dumps(self._told()), flush=True)

    def _read_on(self) -> None:
        with contextlib.suppress(OSError):
            if self._socket.recv(65_536):
                now = time.monotonic()
                self._longest, self._last = max(self._longest, now - self._last), now
                return
        self._ended = True

    def _read(self) -> None:
        while not self._ended:
            self._read_on()

    def _memory(self) -> int:
        memory: int = self._process.memory_info().rss
        return memory

    def _sample(self) -> None:
        with contextlib.suppress(psutil.Error):
            while True:
                self._peak = max(self._peak, self._memory())
                time.sleep(SAMPLE_SECONDS)

    def _told(self) -> dict[str, float]:
        gap = max(self._longest, time.monotonic() - self._last) - PAUSE
        times = self._process.cpu_times()
        memory = self._memory()
        return {
            "gap": gap,
            "cpu": times.user + times.system,
            "memory": memory,
            "peak": max(self._peak, memory),
            "ended": self._ended,
        }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _Client(int(sys.argv[1]), psutil.Process(int(sys.argv[2]))).run()
    else:
        asyncio.run(_run_host())
