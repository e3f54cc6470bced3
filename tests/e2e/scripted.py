"""A host that is well, but answers inference with what a test has written, and does afterwards what the test says."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable

from tests.e2e.harness import Hosts, RawHost

NDJSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

TEXT = b'{"model":"m","response":"Hel","done":false}\n'
DONE = b'{"model":"m","response":"","done":true}\n'
OPENAI_TEXT = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n'
OPENAI_DONE = b"data: [DONE]\n\n"
ANTHROPIC_TEXT = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"Hel"}}\n\n'
)
ANTHROPIC_DONE = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
RESPONSES_TEXT = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Hel"}\n\n'
RESPONSES_DONE = (
    b'event: response.completed\ndata: {"type":"response.completed","response":{"object":"response",'
    b'"status":"completed","usage":{"input_tokens":3,"output_tokens":1}}}\n\n'
)


def chunked(*pieces: bytes) -> bytes:
    """Chunks of a body, without the last one that ends it."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


class ScriptedHost:
    """`answers` by path; after an answer `then` is awaited, and what it returns is whether the connection closes.

    `reset`: it closes with a reset.
    While `well` is clear nothing is answered to who asks what the host has, as by a host that has no power.
    """

    def __init__(
        self,
        hosts: Hosts,
        answers: dict[str, bytes],
        then: Callable[[], Awaitable[bool]] | None = None,
        *,
        reset: bool = False,
    ) -> None:
        self.well = threading.Event()
        self.well.set()
        self.asked: list[str] = []
        self.left = 0
        """Connections with an answer that the balancer has closed while `then` ran."""
        self._answers = answers
        self._then = then
        self._reset = reset
        self._host = RawHost(hosts, self._serve)
        self.url = self._host.url

    def stop(self) -> None:
        self._host.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].decode()
            lines = head.lower().split(b"\r\n")
            length = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
            await reader.readexactly(length[0] if length else 0)
            if b"transfer-encoding: chunked" in lines:
                await reader.readuntil(b"0\r\n\r\n")
            if path in ("/api/version", "/api/tags", "/api/ps"):
                if not self.well.is_set():
                    await reader.read()
                    return
                text = b'{"version":"1.0"}' if path == "/api/version" else b'{"models":[{"name":"m"}]}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
                continue
            self.asked.append(path)
            writer.write(self._answers[path])
            await writer.drain()
            if self._then is None:
                await reader.read()  # until the balancer closes
                self.left += 1
                return
            if await self._then():
                if self._reset:
                    connection: socket.socket = writer.get_extra_info("socket")
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
