"""A request whose answer is listened for while its body is sent: one that comes before the end of the body counts.

Ollama answers a file that it has without reading it, a proxy one that is too large, and both close. What is sent after
that resets the connection, and whoever has not read by then loses the answer. A plain socket is used, as asyncio's
transports drop what has arrived unread when a write fails.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import h11

from agent_reporter.connecting import connect

from ..core.address import Address

READ_SIZE = 64 * 1024

LAST_WORDS_SECONDS = 5.0
"""For the answer of a host that has stopped taking the body: it has sent it before, if at all."""


class UploadError(Exception):
    """There was no whole answer. The message says why; it holds nothing of the request."""


class UnreachableError(UploadError):
    """No connection could be made."""


@dataclass(frozen=True)
class Upload:
    """What is sent. `headers` are without Host; with no Content-Length among them the body goes in chunks."""

    address: Address
    method: str
    target: str
    headers: Iterable[tuple[bytes, bytes]]
    body: AsyncIterator[bytes]


@dataclass(frozen=True)
class Limits:
    """`write` is the seconds for each piece of the body, `answer` those from its end to the answer's.

    `body` is the most bytes that the answer's body may have.
    """

    connect: float
    write: float
    answer: float
    body: int


@dataclass
class Answer:
    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


async def upload(request: Upload, limits: Limits) -> Answer:
    """Send the request and return its answer. Raises UploadError, and whatever the body raises."""
    sock = await _connect(request.address, limits.connect)
    peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=READ_SIZE)
    answering = asyncio.create_task(_read(sock, peer, limits.body), name="fan-out")
    sending = asyncio.create_task(_send(sock, peer, request, limits.write), name="fan-out")
    try:
        await asyncio.wait((answering, sending), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            whole = sending.exception() is None
            await asyncio.wait((answering,), timeout=limits.answer if whole else LAST_WORDS_SECONDS)
        if answering.done() and (answering.exception() is None or not sending.done()):
            return answering.result()
        sending.result()
        if answering.done():
            return answering.result()
        raise UploadError(f"no answer within {limits.answer:g} s")
    except OSError as error:
        raise UploadError(error.strerror or type(error).__name__) from error
    except h11.RemoteProtocolError as error:
        raise UploadError(f"its answer is no HTTP: {error}") from error
    finally:
        for task in (answering, sending):
            task.cancel()
        await asyncio.gather(answering, sending, return_exceptions=True)
        sock.close()


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


async def _send(sock: socket.socket, peer: h11.Connection, request: Upload, seconds: float) -> None:
    loop = asyncio.get_running_loop()

    async def write(data: bytes | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await loop.sock_sendall(sock, data or b"")
        except TimeoutError:
            raise UploadError(f"it took nothing of the body for {seconds:g} s") from None

    await write(peer.send(h11.Request(method=request.method, target=request.target, headers=_headers(request))))
    async for piece in request.body:
        await write(peer.send(h11.Data(piece)))
    await write(peer.send(h11.EndOfMessage()))


async def _read(sock: socket.socket, peer: h11.Connection, limit: int) -> Answer:
    """Read the answer; what comes before it (1xx) is no answer."""
    loop = asyncio.get_running_loop()
    answer, body = Answer(), bytearray()
    while True:
        match event := peer.next_event():
            case h11.NEED_DATA:
                peer.receive_data(await loop.sock_recv(sock, READ_SIZE))
            case h11.Response():
                answer.status, answer.headers = event.status_code, tuple(event.headers.raw_items())
            case h11.Data():
                body += event.data
                if len(body) > limit:
                    raise UploadError(f"it answers with more than {limit} bytes")
            case h11.EndOfMessage():
                answer.body = bytes(body)
                return answer
            case h11.ConnectionClosed():
                raise UploadError("it closed the connection without an answer")


def _headers(request: Upload) -> list[tuple[bytes, bytes]]:
    headers = [(b"Host", str(request.address).encode()), (b"Connection", b"close")]
    headers += [(name, value) for name, value in request.headers if name.lower() not in (b"host", b"transfer-encoding")]
    names = {name.lower() for name, _ in request.headers}
    if b"transfer-encoding" in names or b"content-length" not in names:
        headers = [field for field in headers if field[0].lower() != b"content-length"]
        headers.append((b"Transfer-Encoding", b"chunked"))
    return headers
