"""One HTTP call to a server that is not trusted: bounded in time and size, and one kind of error for all that fails.

h11 has the protocol; asyncio has the connection, one for each call. That is all a report needs, in a third of the
memory of a full client library. No proxy, no redirect and no compression: what a small body unpacks to has no bound.
"""

import asyncio
import functools
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import h11
import pydantic_core

from .connecting import connect
from .timeouts import timeout as deadline

LONGEST_HEAD = 64 * 1024
"""Bytes of an answer's head, or of one chunk's, that are read at most."""


class CallError(Exception):
    """A call got no usable answer. The message says why; it holds nothing of the request."""


class ConnectError(CallError):
    """No connection could be made."""


class CallTimeoutError(CallError):
    """There was no whole answer in time; `connected` tells whether there was a connection."""

    def __init__(self, message: str, *, connected: bool = True) -> None:
        super().__init__(message)
        self.connected = connected


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Their names are in lower case."""
    peer: str = ""
    """The IP address that answered."""

    def header(self, name: bytes) -> str | None:
        """The first of that name."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)


Call: TypeAlias = Callable[..., Awaitable[Answer]]
"""What `call` does, or something in its place."""


async def call(
    method: str,
    url: str,
    *,
    timeout: float,
    limit: int,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Make one call. `timeout` is in seconds for all of it, `limit` in bytes of the answer's body. Raises CallError, of
    which ConnectError and CallTimeoutError are kinds.
    """
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    fields = {
        "Host": parts.netloc.rpartition("@")[2],
        "Connection": "close",
        "Accept-Encoding": "identity",
        "User-Agent": "ollama-agent-reporter",
        **({} if content is None else {"Content-Length": str(len(content))}),
        **(headers or {}),
    }
    connected = False
    try:
        async with deadline(timeout):
            try:
                host = parts.hostname or ""
                made = await connect(host, parts.port or (443 if tls else 80))
                # TLS is begun here, too: who does not get through that is not reached.
                reader, writer = await asyncio.open_connection(
                    sock=made, ssl=_tls() if tls else None, server_hostname=host if tls else None
                )
            except OSError as error:
                raise ConnectError(reason_of(error)) from error
            connected = True
            try:
                peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=LONGEST_HEAD)
                target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
                request = h11.Request(method=method, target=target, headers=list(fields.items()))
                writer.write(peer.send(request) or b"")
                writer.write(b"" if content is None else peer.send(h11.Data(content)) or b"")
                writer.write(peer.send(h11.EndOfMessage()) or b"")
                answer = await _read_answer(reader, peer, limit)
                return answer._replace(peer=str((writer.get_extra_info("peername") or ("",))[0]))
            finally:
                writer.transport.abort()
    except CallError:
        raise
    except TimeoutError:
        what = "whole answer" if connected else "connection"
        raise CallTimeoutError(f"no {what} within {timeout:g} s", connected=connected) from None
    except Exception as error:  # whatever becomes of a hostile answer
        raise CallError(reason_of(error)) from error


async def _read_answer(reader: asyncio.StreamReader, peer: h11.Connection, limit: int) -> Answer:
    status, body = 0, bytearray()
    headers: tuple[tuple[bytes, bytes], ...] = ()
    while True:
        match event := peer.next_event():
            case h11.NEED_DATA:
                peer.receive_data(await reader.read(64 * 1024))
            case h11.Response():
                status, headers = event.status_code, tuple(event.headers)
            case h11.Data():
                body += event.data
                if len(body) > limit:
                    raise CallError(f"its answer is longer than {limit} bytes")
            case h11.EndOfMessage():
                return Answer(status, bytes(body), headers)
            case h11.ConnectionClosed():
                raise CallError("it closed the connection without an answer")


@functools.cache
def _tls() -> ssl.SSLContext:
    """Shared: each takes tens of milliseconds to make. $SSL_CERT_FILE names other roots."""
    return ssl.create_default_context()


def parse_json(body: bytes) -> Any:
    """Read JSON without NaN, infinities and bottomless nesting. Raises ValueError."""
    return pydantic_core.from_json(body, allow_inf_nan=False)


def reason_of(error: BaseException) -> str:
    """Why it failed, in the operating system's words where it has some."""
    if isinstance(error, h11.RemoteProtocolError):
        return f"its answer is not HTTP: {error}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return "host not found"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {getattr(error, 'verify_message', '') or error.reason or type(error).__name__}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__
