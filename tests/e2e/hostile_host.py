"""A host that answers what the hostile inputs ask for, with more than is good for anybody."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json

MIB = 1 << 20

LINE = b'{"model":"m","response":"%s","done":false}\n' % (b"x" * 32_000)
DONE = b'{"model":"m","response":"","done":true,"status":"success"}\n'

STREAMS = {
    "bare CRs": (b"text/event-stream", b"\r" * 65_536, 20 * MIB),
    "blank lines": (b"application/x-ndjson", b"\n" * 65_536, 20 * MIB),
    "empty objects": (b"application/x-ndjson", b"{}\n" * 21_000, 20 * MIB),
    "comments": (b"text/event-stream", b":\n" * 32_000, 20 * MIB),
    "event of arrays": (b"application/x-ndjson", b"[]," * 21_000, 7 * MIB),
    "event of floats": (b"application/x-ndjson", b"1.5e3," * 10_000, 7 * MIB),
}
"""Answers of the host, by the prompt that asks for them: type, a piece, and how many bytes of it."""

STRANGE = {
    "web page": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nService-Worker-Allowed: /\r\nRefresh: 0\r\n"
    b"Content-Length: 25\r\n\r\n<script>alert(1)</script>",
    "escapes": b"HTTP/1.1 200 \x1b[2J\r\nContent-Length: 2\r\n\r\n{}",
    "odd status": b"HTTP/3.7 1000 OK\r\nContent-Length: 2\r\n\r\n{}",
}

WHOLE = {
    "answer of arrays": b'{"embeddings":[' + b"[]," * (3 * MIB // 3) + b"1]}",
    "answer of floats": b'{"embeddings":[' + b"1.5e3," * (3 * MIB // 6) + b"1]}",
}


def many(unit: bytes, size: int) -> bytes:
    return b"[" + unit * (size // len(unit)) + b"1]"


async def _serve(listing: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
    with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(lengths[0][15:]) if lengths else 0)
            prompt = ""
            with contextlib.suppress(ValueError):
                asked = json.loads(body) if 0 < len(body) < 1000 else {}
                prompt = str(asked.get("prompt") or asked.get("model"))
            if head.startswith(b"GET"):
                answer = listing if b"/api/tags" in head else b'{"models":[],"version":"0.33.0"}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
            elif prompt == "large head":
                writer.write(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 300_000 + b"\r\n")
            elif prompt == "endless head":
                writer.write(b"HTTP/1.1 200 OK\r\nx: ")
                for _ in range(100):
                    writer.write(b"y" * MIB)
                    await writer.drain()
            elif prompt in STRANGE:
                writer.write(STRANGE[prompt])
            elif prompt == "fast":
                writer.write(chunked % b"application/x-ndjson")
                while True:
                    writer.write(b"%x\r\n%s\r\n" % (len(LINE), LINE))
                    await writer.drain()
            elif prompt == "chunks of one byte":
                writer.write(chunked % b"application/x-ndjson")
                for _ in range(20 if head.startswith(b"POST /api/pull") else 100):
                    writer.write(b"1\r\nx\r\n" * 10_000)
                    await writer.drain()
                writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(DONE) + 1, b"\n" + DONE))
            elif prompt in STREAMS:
                kind, piece, size = STREAMS[prompt]
                writer.write(chunked % kind)
                for _ in range(size // len(piece)):
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
                writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(DONE) + 1, b"\n" + DONE))
            else:
                answer = WHOLE.get(prompt, DONE)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(answer), answer))
            await writer.drain()


def host(ports: tuple[int, int]) -> None:
    """The host, in a process of its own."""

    async def run() -> None:
        usual = b'{"models":[{"name":"m"}]}'
        large = b'{"models":[{"name":"n","x":' + many(b"{},", 8 * MIB - 1000) + b"}]}"
        for port, listing in zip(ports, (usual, large), strict=True):
            await asyncio.start_server(functools.partial(_serve, listing), "127.0.0.1", port)
        await asyncio.Event().wait()

    asyncio.run(run())
