"""One HTTP/1.1 call to an agent that reads the answer while it still sends the body.

An early answer counts: Ollama answers an upload of a blob it already has without reading the body, a proxy refuses one
that is too large, and both then close. Data sent after that resets the connection, and an answer that is still unread
is lost. asyncio transports discard unread data when a write fails, so this uses a plain socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import h11

from agent_reporter.connecting import connect
from agent_reporter.http import reason_of

from ..core.address import Address
from .headers import has_control_characters
from .messages import Fields, header

READ_SIZE = 64 * 1024

EARLY_ANSWER_SECONDS = 5.0
"""Seconds to wait for an early answer after sending the body has failed."""

MAX_INTERIM = 100
"""Interim (1xx) answers to one request; a host that sends more never answers."""

EVENTS_AT_ONCE = 64
"""Pieces of an answer that are parsed before other tasks get a turn, where all of them have arrived."""


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
    """Timeouts in seconds: to connect, to send each piece of the body, and `answer` for the head of the answer, for its
    whole body, and between the pieces of one that streams."""

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
        self._events = 0

    def header(self, name: bytes) -> str:
        """The value of a header, given by its lower-case name; empty if it is missing."""
        return header(self.fields, name) or ""

    async def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        loop = asyncio.get_running_loop()
        self._events += 1
        if self._events % EVENTS_AT_ONCE == 0:
            await asyncio.sleep(0)
        while (event := self._peer.next_event()) is h11.NEED_DATA:
            try:
                async with asyncio.timeout(self._limits.answer):
                    data = await loop.sock_recv(self._socket, READ_SIZE)
            except TimeoutError:
                raise CallTimeoutError(f"no data for {self._limits.answer:g} s") from None
            if not data and self._peer.their_state is h11.SEND_RESPONSE:
                raise CallError("it closed the connection without an answer")
            self._peer.receive_data(data)
            await asyncio.sleep(0)  # `sock_recv` does not wait while there is data
        return event

    async def read_head(self) -> None:
        """Skips interim (1xx) answers."""
        for _ in range(MAX_INTERIM + 1):
            event = await self._next()
            if isinstance(event, h11.Response):
                self.status, self.fields = event.status_code, tuple(event.headers.raw_items())
                if has_control_characters(value for _, value in self.fields):
                    raise CallError("the headers of its answer contain control characters")
                return
        raise CallError(f"more than {MAX_INTERIM} interim (1xx) answers")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises CallError."""
        with _as_call_errors():
            while True:
                event = await self._next()
                if isinstance(event, h11.EndOfMessage):
                    return
                if isinstance(event, h11.Data):
                    yield bytes(event.data)

    async def body(self, limit: int, note_activity: Callable[[], None]) -> bytes:
        """The whole body, of `limit` bytes at most; `note_activity` is called with each piece. Raises CallError."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.answer):
                async for piece in self.pieces():
                    note_activity()
                    body += piece
                    if len(body) > limit:
                        raise CallError(f"its answer is larger than {limit} bytes")
        except TimeoutError:
            raise CallTimeoutError(f"no whole answer within {self._limits.answer:g} s") from None
        return bytes(body)


@contextlib.asynccontextmanager
async def answer_to(call: Call, limits: Limits) -> AsyncIterator[Answer]:
    """Make the call. Raises CallError, and whatever its body raises."""
    peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=READ_SIZE)
    try:
        head = peer.send(h11.Request(method=call.method, target=call.target, headers=_fields(call)))
    except (h11.LocalProtocolError, UnicodeError):  # which quote what it is about
        raise CallError("the request has characters in its head that HTTP/1.1 does not allow") from None
    with contextlib.closing(await _connect(call.address, limits.connect)) as sock:
        answer = Answer(sock, peer, limits)
        reading = asyncio.create_task(answer.read_head(), name="fan-out")
        sending = asyncio.create_task(_send(sock, peer, head or b"", call.body, limits.write), name="fan-out")
        try:
            with _as_call_errors():
                await _wait_for_head(reading, sending, limits)
            yield answer
        finally:
            for task in (reading, sending):
                task.cancel()
            await asyncio.gather(reading, sending, return_exceptions=True)


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
    except h11.LocalProtocolError:
        raise CallError("the request's body is not as long as its head says") from None


async def _connect(address: Address, seconds: float) -> socket.socket:
    """Connect to the first of the host's addresses that answers."""
    try:
        async with asyncio.timeout(seconds):
            return await connect(address.host, address.port)
    except TimeoutError:
        raise UnreachableError(f"not reached within {seconds:g} s") from None
    except OSError as error:
        raise UnreachableError(reason_of(error)) from error


async def _send(
    sock: socket.socket,
    peer: h11.Connection,
    head: bytes,
    body: bytes | AsyncIterator[bytes] | None,
    seconds: float,
) -> None:
    loop = asyncio.get_running_loop()

    async def write(data: bytes | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await loop.sock_sendall(sock, data or b"")
        except TimeoutError:
            raise CallTimeoutError(f"it read nothing of the request body for {seconds:g} s") from None

    await write(head)
    async for piece in _pieces(body):
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
    own = [(b"Host", call.address.authority.encode())]
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
