"""One HTTP/1.1 call to an agent that reads the answer while it still sends the body.

An early answer counts: Ollama answers an upload of a blob it already has without reading the body, a proxy refuses one
that is too large, and both then close. Data sent after that resets the connection, and an answer that is still unread
is lost. asyncio transports discard unread data when a write fails, so this uses a plain socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import h11

from agent_reporter.connecting import connect

from ..core.address import Address
from .messages import Fields, header

READ_SIZE = 64 * 1024

EARLY_ANSWER_SECONDS = 5.0
"""Seconds to wait for an early answer after sending the body has failed."""


class CallError(Exception):
    """The call failed. The message says why and contains nothing of the request."""


class UnreachableError(CallError):
    """No connection could be made."""


class CallTimeoutError(CallError):
    """A timeout expired."""


@dataclass(frozen=True)
class Call:
    """The request. The Host header is made from `address`; a streamed body without Content-Length is sent in chunks."""

    address: Address
    method: str
    target: str
    fields: Fields
    body: bytes | AsyncIterator[bytes] | None = None


@dataclass(frozen=True)
class Limits:
    """Timeouts in seconds: to connect, to send each piece of the body, and to wait for each part of the answer."""

    connect: float
    write: float
    answer: float


class Answer:
    """The head of an answer, and its body piece by piece."""

    def __init__(self, sock: socket.socket, peer: h11.Connection, limits: Limits) -> None:
        self.status = 0
        self.fields: Fields = ()
        self._socket = sock
        self._peer = peer
        self._limits = limits

    def header(self, name: bytes) -> str:
        """The value of a header, given by its lower-case name; empty if it is missing."""
        return header(self.fields, name) or ""

    async def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        loop = asyncio.get_running_loop()
        while (event := self._peer.next_event()) is h11.NEED_DATA:
            self._peer.receive_data(await loop.sock_recv(self._socket, READ_SIZE))
        return event

    async def read_head(self) -> None:
        """Skips interim (1xx) answers."""
        while True:
            match event := await self._next():
                case h11.Response():
                    self.status, self.fields = event.status_code, tuple(event.headers.raw_items())
                    return
                case h11.ConnectionClosed():
                    raise CallError("it closed the connection without an answer")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises CallError."""
        with _as_call_errors():
            while True:
                try:
                    async with asyncio.timeout(self._limits.answer):
                        event = await self._next()
                except TimeoutError:
                    raise CallTimeoutError(f"no data for {self._limits.answer:g} s") from None
                if isinstance(event, h11.EndOfMessage):
                    return
                if isinstance(event, h11.Data):
                    yield bytes(event.data)

    async def body(self, limit: int) -> bytes:
        """The whole body, of `limit` bytes at most. Raises CallError."""
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > limit:
                raise CallError(f"its answer is larger than {limit} bytes")
        return bytes(body)


@contextlib.asynccontextmanager
async def answer_to(call: Call, limits: Limits) -> AsyncIterator[Answer]:
    """Make the call. Raises CallError, and whatever its body raises."""
    sock = await _connect(call.address, limits.connect)
    peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=READ_SIZE)
    answer = Answer(sock, peer, limits)
    reading = asyncio.create_task(answer.read_head(), name="fan-out")
    sending = asyncio.create_task(_send(sock, peer, call, limits.write), name="fan-out")
    try:
        with _as_call_errors():
            await _wait_for_head(reading, sending, limits)
        yield answer
    finally:
        for task in (reading, sending):
            task.cancel()
        await asyncio.gather(reading, sending, return_exceptions=True)
        sock.close()


async def _wait_for_head(reading: asyncio.Task[None], sending: asyncio.Task[None], limits: Limits) -> None:
    """Wait for the head of the answer, even if the body is still being sent."""
    await asyncio.wait((reading, sending), return_when=asyncio.FIRST_COMPLETED)
    if not reading.done():
        sent_whole = sending.exception() is None
        await asyncio.wait((reading,), timeout=limits.answer if sent_whole else EARLY_ANSWER_SECONDS)
    if reading.done() and (reading.exception() is None or not sending.done()):
        return reading.result()
    sending.result()
    if reading.done():
        return reading.result()
    raise CallTimeoutError(f"no answer within {limits.answer:g} s")


@contextlib.contextmanager
def _as_call_errors() -> Iterator[None]:
    """Turn errors of the socket and of h11 into CallError."""
    try:
        yield
    except OSError as error:
        raise CallError(error.strerror or type(error).__name__) from error
    except h11.RemoteProtocolError as error:
        raise CallError(f"its answer is not HTTP: {error}") from error


async def _connect(address: Address, seconds: float) -> socket.socket:
    """Connect to the first of the host's addresses that answers."""
    try:
        async with asyncio.timeout(seconds):
            return await connect(address.host, address.port)
    except TimeoutError:
        raise UnreachableError(f"not reached within {seconds:g} s") from None
    except socket.gaierror as error:
        raise UnreachableError(error.strerror or "host not found") from error
    except OSError as error:
        raise UnreachableError(error.strerror or str(error) or type(error).__name__) from error


async def _send(sock: socket.socket, peer: h11.Connection, call: Call, seconds: float) -> None:
    loop = asyncio.get_running_loop()

    async def write(data: bytes | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await loop.sock_sendall(sock, data or b"")
        except TimeoutError:
            raise CallTimeoutError(f"it read nothing of the request body for {seconds:g} s") from None

    await write(peer.send(h11.Request(method=call.method, target=call.target, headers=_fields(call))))
    async for piece in _pieces(call.body):
        await write(peer.send(h11.Data(piece)))
    await write(peer.send(h11.EndOfMessage()))


async def _pieces(body: bytes | AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
    if body is None:
        return
    if isinstance(body, bytes):
        for at in range(0, len(body), READ_SIZE):
            yield body[at : at + READ_SIZE]
        return
    async for piece in body:
        yield piece


def _fields(call: Call) -> list[tuple[bytes, bytes]]:
    own = [(b"Host", str(call.address).encode())]
    names = {name.lower() for name, _ in call.fields}
    unwanted = {b"host", b"transfer-encoding"}
    if isinstance(call.body, bytes) or call.body is None:
        unwanted.add(b"content-length")
        if call.body:
            own.append((b"Content-Length", b"%d" % len(call.body)))
        elif b"content-length" in names and call.method != "HEAD":
            own.append((b"Content-Length", b"0"))
    elif b"transfer-encoding" in names or b"content-length" not in names:
        unwanted.add(b"content-length")
        own.append((b"Transfer-Encoding", b"chunked"))
    return [*own, *(field for field in call.fields if field[0].lower() not in unwanted)]
