"""How long one request, answer or report holds up a stream beside it: python -m benches.stalls [NAME ...]

A real mitmdump, and in processes of their own a host that sends a line each 10 ms without an end, and the client that
reads it. While that runs each input below is sent; the table shows the longest time between two lines of the stream,
less the 10 ms. What the machine does by itself is the row `nothing`.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from tests.e2e.harness import TOKEN, Proxy, free_port, report, running_proxy

MIB = 1 << 20
PAUSE = 0.01
LINE = b'{"model":"m","created_at":"2026-01-31T12:00:00Z","response":"x","done":false}\n'
DONE = b'{"model":"m","response":"","done":true}\n'

STREAMS = {
    "bare CRs": (b"text/event-stream", b"\r" * 65_536, 20 * MIB),
    "blank lines": (b"application/x-ndjson", b"\n" * 65_536, 20 * MIB),
    "empty objects": (b"application/x-ndjson", b"{}\n" * 21_000, 20 * MIB),
    "comments": (b"text/event-stream", b":\n" * 32_000, 20 * MIB),
    "event of arrays": (b"application/x-ndjson", b"[]," * 21_000, 7 * MIB),
    "event of floats": (b"application/x-ndjson", b"1.5e3," * 10_000, 7 * MIB),
}
"""Answers of the host, by the prompt that asks for them: type, a piece, and how many bytes of it."""

WHOLE = {
    "answer of arrays": b'{"embeddings":[' + b"[]," * (3 * MIB // 3) + b"1]}",
    "answer of floats": b'{"embeddings":[' + b"1.5e3," * (3 * MIB // 6) + b"1]}",
}


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(lengths[0][15:]) if lengths else 0)
            prompt = json.loads(body).get("prompt", "") if 0 < len(body) < 1000 else ""
            if head.startswith(b"GET"):
                told = b'{"models":[{"name":"m"}],"version":"1"}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(told), told))
            elif prompt == "victim":
                writer.write(chunked % b"application/x-ndjson")
                while True:
                    writer.write(b"%x\r\n%s\r\n" % (len(LINE), LINE))
                    await writer.drain()
                    await asyncio.sleep(PAUSE)
            elif prompt == "large head":
                writer.write(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 300_000 + b"\r\n")
            elif prompt in STREAMS:
                kind, piece, size = STREAMS[prompt]
                writer.write(chunked % kind)
                for _ in range(size // len(piece)):
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
                writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(DONE) + 1, b"\n" + DONE))
            else:
                told = WHOLE.get(prompt, DONE)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(told), told))
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


def _host(port: int) -> None:
    async def run() -> None:
        server = await asyncio.start_server(_serve, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(run())


def _victim(port: int, orders: Connection) -> None:
    """Reads the stream; tells the longest gap since it was last asked."""
    body = b'{"model":"m","prompt":"victim"}'
    longest, last = 0.0, time.monotonic()

    def answer() -> None:
        nonlocal longest
        while orders.recv():
            orders.send(max(longest, time.monotonic() - last) - PAUSE)
            longest = 0.0

    with socket.create_connection(("127.0.0.1", port)) as s:
        s.sendall(b"POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        s.recv(65_536)
        threading.Thread(target=answer, daemon=True).start()
        while s.recv(65_536):
            now = time.monotonic()
            longest, last = max(longest, now - last), now


def _send(proxy: Proxy, data: Iterator[bytes]) -> bytes:
    """Send it as far as it is taken; the first bytes that come back."""
    first = b""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=120) as s:
        try:
            for piece in data:
                s.sendall(piece)
            got = first = s.recv(65_536)
            while got and not (b"\r\n0\r\n\r\n" in got or got.endswith(b"}\n")):
                s.settimeout(1)
                got = s.recv(65_536)
        except OSError:
            return first
        return first


def _head(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([first, b"Host: x", *lines, b"", b""])


def _post(path: str, body: bytes, token: bool = False) -> bytes:
    line = b"Authorization: Bearer %s\r\n" % TOKEN.encode() if token else b""
    return b"POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s" % (path.encode(), line, len(body), body)


def _chat(content: bytes) -> Callable[[], bytes]:
    return lambda: _post("/api/chat", b'{"x":' + content + b',"model":"m","messages":[]}')


def _many(unit: bytes, size: int) -> bytes:
    return b"[" + unit * (size // len(unit)) + b"1]"


def _report(models: bytes) -> Callable[[], bytes]:
    def made() -> bytes:
        body = json.dumps(report()).encode()
        return _post("/api/agents/one/metrics", body[:-1] + b',"models":' + models + b"}", token=True)

    return made


def _chunks(unit: bytes, count: int) -> bytes:
    return _head(b"Transfer-Encoding: chunked", first=b"POST /api/chat HTTP/1.1") + unit * count + b"0\r\n\r\n"


def _entries(count: int) -> bytes:
    return b"[" + b",".join(b'{"name":"m%d"}' % n for n in range(count)) + b"]"


INPUTS: dict[str, Callable[[], bytes]] = {
    "path of 10 MB": lambda: _head(first=b"GET /" + b"a" * 10_000_000 + b" HTTP/1.1"),
    "400,000 folded lines": lambda: _head(b"x: y", *[b" z"] * 400_000),
    "340,000 via": lambda: _head(*[b"via: 1.1 x"] * 340_000),
    "1,000 via of 1 kB": lambda: _head(*[b"via: " + b"x" * 1000] * 998),
    "authorization of 32 MiB": lambda: _head(b"Authorization: Bearer " + b"a b " * (8 * MIB)),
    "authorization of 1 MiB": lambda: _head(b"Authorization: Bearer " + b"a b " * (MIB // 4 - 100)),
    "host of 50,000 é": lambda: "GET / HTTP/1.1\r\nHost: {}\r\n\r\n".format("é" * 50_000).encode(),
    "400 requests ahead": lambda: _head() * 400,
    "240 lists ahead": lambda: _head(first=b"GET /api/agents HTTP/1.1") * 240,
    "query of 60 kB": lambda: _head(first=b"GET /dashboard/data?" + b"a&" * 30_000 + b" HTTP/1.1"),
    "body of arrays, 60 kB": _chat(_many(b"[],", 60_000)),
    "body of arrays, 100 MiB": _chat(_many(b"[],", 100 * MIB)),
    "body of numbers, 100 MiB": _chat(_many(b"1,", 100 * MIB)),
    "body of short strings, 100 MiB": _chat(_many(b'"a",', 100 * MIB)),
    "body of escapes, 100 MiB": _chat(b'"' + b'\\"' * (50 * MIB) + b'"'),
    "message of escapes, 100 MiB": lambda: _post(
        "/api/chat", b'{"model":"m","messages":[{"role":"user","content":"' + b'\\"' * (50 * MIB) + b'"}]}'
    ),
    "body of blanks, 100 MiB": _chat(b" " * (100 * MIB) + b"1"),
    "body of one text, 100 MiB": _chat(b'"' + b"x" * (100 * MIB) + b'"'),
    "deep body": _chat(b"[" * 9_000 + b"]" * 9_000),
    "unknown model, objects of 1 MiB": lambda: _post("/api/chat", b'{"model":"nope","x":' + _many(b"{},", MIB) + b"}"),
    "2 MB of chunks of one byte": lambda: _chunks(b"1\r\nx\r\n", 340_000),
    "chunk line of 20 MB": lambda: _chunks(b"1;" + b"x" * 20_000_000, 1),
    "report of 100,000 entries": _report(b'[{"name":"a"}' + b',{"name":"a"}' * 70_000 + b"]"),
    "report of 2,500 models": _report(_entries(2_500)),
    "report of arrays": _report(b'[{"name":"a","x":' + _many(b"[],", 900_000) + b"}]"),
    "report of no models": _report(b"[[]" + b",[]" * 2_400 + b"]"),
    "answer with 300,000 fields": lambda: _post("/api/generate", b'{"model":"m","prompt":"large head"}'),
} | {
    f"stream of {name}" if "event" not in name else name: (
        lambda name=name: _post("/api/generate", json.dumps({"model": "m", "prompt": name}).encode())
    )
    for name in (*STREAMS, *WHOLE)
}


def main(names: list[str]) -> None:
    context = multiprocessing.get_context("spawn")
    host_port = free_port()
    host = context.Process(target=_host, args=(host_port,), daemon=True)
    host.start()
    options = ("--set", f"balancer_agents=one=http://127.0.0.1:{host_port}", "-q")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder, running_proxy(Path(folder), *options, by_script=True) as proxy:
        proxy.wait_online("one")
        victim = context.Process(target=_victim, args=(proxy.port, theirs), daemon=True)
        victim.start()
        time.sleep(2)

        def gap() -> float:
            ours.send(True)
            return 1000 * float(ours.recv())

        gap()
        time.sleep(3)
        print("| input | seconds | answer | longest gap, ms |\n|---|---|---|---|")
        print(f"| nothing | 3.0 | | {gap():.0f} |")
        for name, make in INPUTS.items():
            if names and not any(wanted in name for wanted in names):
                continue
            data = make()
            gap()
            began = time.monotonic()
            answer = _send(proxy, (data[at : at + MIB] for at in range(0, len(data), MIB)))
            seconds = time.monotonic() - began
            time.sleep(0.2)
            print(f"| {name} | {seconds:.2f} | {answer[9:12].decode('latin-1')} | {gap():.0f} |", flush=True)
        victim.terminate()
    host.terminate()


if __name__ == "__main__":
    main(sys.argv[1:])
