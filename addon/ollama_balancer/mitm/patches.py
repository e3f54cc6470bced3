"""What is changed in mitmproxy itself, where it has no hook: put in place by `apply`, taken back by `restore`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mitmproxy import contentviews
from mitmproxy.connection import Client, Connection, ConnectionState
from mitmproxy.flow import Flow
from mitmproxy.net.http import status_codes
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import ErrorCode, ReceiveHttp, ResponseProtocolError
from mitmproxy.utils import human

from agent_reporter.connecting import connect, is_address

from ..gateway.headers import has_control_characters
from ..gateway.request_ids import new_request_id
from ..ollama.errors import error_body
from ..ollama.routes import Dialect, dialect_of
from ..text import one_line, without_bytes
from . import compat, http2, interim
from .body_buffers import CoalescingReader
from .compat import mitmproxy_names as names
from .compat.names import Patches, Replaced
from .head_limits import MAX_HOST, HeadError, LimitedBuffer, check_answer, check_authority, check_request
from .inspection import decoding, saved_files
from .inspection.contentview import OllamaContentview

logger = logging.getLogger(__name__)

DISCARD_LIMIT = 32 * 1024 * 1024
"""Bytes of a refused request that are read and dropped, so that the client can read why."""

DISCARD_SECONDS = 1.0


@dataclass
class NextRequestHook(commands.StartHook):
    """A client has sent another request before the last one was answered: it is read when the hook is over."""

    client: Client
    blocking = True


@dataclass
class HeadBegunHook(commands.StartHook):
    """A part of a request's head has come, and not all of it."""

    client: Client


def refusal(status: int, message: str, dialect: Dialect = Dialect.OLLAMA) -> bytes:
    """An answer, head and all, after which the connection is closed."""
    body = error_body(dialect, status, one_line(message, 300))
    retry_header = b"Retry-After: 5\r\n" if status == 503 else b""
    return (
        b"HTTP/1.1 %d %s\r\nContent-Type: application/json; charset=utf-8\r\nConnection: close\r\n%s"
        b"X-Request-Id: %s\r\n"
        b"Content-Length: %d\r\n\r\n%s"
        % (
            status,
            status_codes.RESPONSES.get(status, "").encode(),
            retry_header,
            new_request_id().encode(),
            len(body),
            body,
        )
    )


def _read_request(self: Any, event: events.Event) -> CommandGenerator[None]:
    """`Http1Server.read_headers`, with limits, and without recursion where requests come before their answers."""
    if not isinstance(self.buf, LimitedBuffer):  # the connection is older than the patches
        before, self.buf = self.buf, LimitedBuffer()
        self.buf += bytes(before)
    if isinstance(event, events.Wakeup):
        if not self.buf.ahead:
            return
        self.buf.ahead = False
        yield NextRequestHook(self.conn)
        if self.conn.state is ConnectionState.CLOSED:
            return
        event = events.DataReceived(self.conn, b"")
    elif self.buf.ahead:
        if isinstance(event, events.DataReceived):
            return
        self.buf = LimitedBuffer()  # the client is gone, and what it sent ahead with it
    elif isinstance(event, events.DataReceived) and not event.data:
        # mitmproxy calls this from within the request before: one more for each that was sent ahead.
        self.buf.ahead = True
        yield commands.RequestWakeup(0)
        return
    try:
        yield from names.READ_REQUEST.original(self, event)
        if self.buf and self.state == self.read_headers and not self.buf.ahead:
            yield HeadBegunHook(self.conn)
    except HeadError as e:
        path = e.line.split(b" ", 2)[1:2]
        dialect = dialect_of(path[0].partition(b"?")[0].decode("utf-8", "replace")) if path else Dialect.OLLAMA
        logger.info("%s: refused: %s", human.format_address(self.conn.peername), e.message)
        yield commands.SendData(self.conn, refusal(e.status, e.message, dialect))
        discarded = 0

        def discard(event: events.Event) -> CommandGenerator[None]:
            nonlocal discarded
            discarded += len(self.buf)
            self.buf = LimitedBuffer()
            if not isinstance(event, events.DataReceived) or discarded > DISCARD_LIMIT:
                yield commands.CloseConnection(self.conn)
                self.state = self.done

        self.state = discard
        yield from discard(events.DataReceived(self.conn, b""))
        yield commands.RequestWakeup(DISCARD_SECONDS)


def _read_answer(self: Any, event: events.Event) -> CommandGenerator[None]:
    """`Http1Client.read_headers`, with limits, and past interim answers."""
    try:
        yield from interim.read_past(names.READ_ANSWER.original, self, event)
    except HeadError as e:
        yield commands.CloseConnection(self.conn)
        message = f"its answer is rejected: {e.message}"
        yield ReceiveHttp(ResponseProtocolError(self.stream_id, message, ErrorCode.GENERIC_SERVER_ERROR))


def _without_client_data(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose ValueErrors do not have in them what a client sent: it may be a secret."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ValueError as e:
            raise ValueError(without_bytes(str(e))) from None

    return wrapper


@_without_client_data
def _read_request_head(lines: list[bytes]) -> Any:
    check_authority(lines)
    check_request(lines)
    return names.REQUEST_HEAD.original(lines)


def _read_response_head(lines: list[bytes]) -> Any:
    check_answer(lines)
    response = names.ANSWER_HEAD.original(lines)
    # What a host says there is for nobody's terminal.
    response.data.reason = status_codes.RESPONSES.get(response.status_code, "").encode()
    return response


@_without_client_data
def _parse_h2_request_headers(headers: Sequence[tuple[bytes, bytes]]) -> Any:
    for name, value in headers:
        if len(value) > MAX_HOST and name in (b":authority", b"host"):
            raise ValueError(f"the host is longer than {MAX_HOST} bytes")
    if has_control_characters(value for _, value in headers):
        raise ValueError("the headers contain control characters")
    return names.H2_REQUEST_HEAD.original(headers)


async def _handle_connection(self: Any, connection: Connection) -> None:
    """`ConnectionHandler.handle_connection`, which forgets the connection where it is cancelled at a bad moment.

    That is while what came waits for the layers to be done with something else: then neither would the socket be
    closed, nor would the layers hear of the end. What a host has not taken by the end is dropped: to close the
    connection would wait for a host that takes nothing.
    """
    ended = self.transports.get(connection)
    try:
        await names.HANDLE_CONNECTION.original(self, connection)
    except asyncio.CancelledError:
        io = self.transports.get(connection)
        if io is not None:
            connection.state = ConnectionState.CLOSED
            delivered = False
            while not delivered:
                with contextlib.suppress(asyncio.CancelledError):
                    await self.server_event(events.ConnectionClosed(connection))
                    delivered = True
            self.transports.pop(connection, None)
            if io.writer is not None:
                io.writer.close()
        raise
    finally:
        if connection is not self.client and ended is not None and isinstance(ended.writer, asyncio.StreamWriter):
            ended.writer.transport.abort()


async def _open_connection(
    host: str, port: int, *, local_addr: tuple[str, int] | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`asyncio.open_connection`, which tries the next address of a name where one does not answer."""
    if local_addr is not None or is_address(host):
        return await asyncio.open_connection(host, port, local_addr=local_addr)
    try:
        connected = await connect(host, port)
    except socket.gaierror as e:
        raise OSError(f"host {host} not found") from e
    return await asyncio.open_connection(sock=connected)


def _asyncio_with(**replaced: Any) -> types.ModuleType:
    """What a module gets to see as asyncio: with some of it replaced, and nobody else concerned."""
    module = types.ModuleType("asyncio", asyncio.__doc__)
    module.__dict__.update(asyncio.__dict__ | replaced)
    return module


def _make_body_reader(expected_size: int | None) -> Any:
    return CoalescingReader() if expected_size is None else names.BODY_READER.original(expected_size)


def _kill(flow: Flow) -> None:
    """`Flow.kill`, which has the client of a held flow wait no longer.

    See https://github.com/mitmproxy/mitmproxy/issues/8045
    """
    was_intercepted = flow.intercepted
    names.KILL.original(flow)
    if was_intercepted:
        flow.intercepted = True
        flow.resume()


def _without_bytes(record: logging.LogRecord) -> bool:
    """mitmproxy logs what it has of a head that is malformed or breaks off, credentials and all."""
    if isinstance(record.msg, str):
        record.msg = without_bytes(record.msg)
    return True


_REPLACEMENTS: list[tuple[Replaced, Any]] = [
    (names.HANDLE_CONNECTION, _handle_connection),
    (names.DRAIN_WRITERS, http2.drain_writers),
    (names.ASYNCIO_OF_SERVER, _asyncio_with(open_connection=_open_connection)),
    (names.HEAD_BUFFER, LimitedBuffer),
    (names.READ_REQUEST, _read_request),
    (names.READ_ANSWER, _read_answer),
    (names.ERROR_RESPONSE, refusal),
    (names.BODY_READER, _make_body_reader),
    (names.REQUEST_HEAD, _read_request_head),
    (names.ANSWER_HEAD, _read_response_head),
    (names.H2_CONNECTION, http2.BoundedH2Connection),
    (names.H2_EVENT, http2.handle_event),
    (names.BODY_SIZE, _without_client_data(lambda *messages: names.BODY_SIZE.original(*messages))),
    (names.VALIDATE_HEADERS, _without_client_data(lambda message: names.VALIDATE_HEADERS.original(message))),
    (names.H2_REQUEST_HEAD, _parse_h2_request_headers),
    (names.KILL, _kill),
    (names.ROTATE, saved_files.rotate),
]

_patches = Patches()
_unsupported = compat.Unsupported()


def apply() -> compat.Unsupported:
    """Put them in place; without effect where they are. What is lost with what is installed.

    IncompatibleError: it cannot be done, and nothing is changed.
    """
    global _unsupported
    if not _patches:
        _unsupported = compat.check()
        for name, replacement in _REPLACEMENTS:
            _patches.replace(name, replacement)
        add_views(_patches)
        log = logging.getLogger("mitmproxy.proxy.server")
        log.addFilter(_without_bytes)
        _patches.on_restore(lambda: log.removeFilter(_without_bytes))
    return _unsupported


def add_views(patches: Patches) -> None:
    """What shows and saves flows: the content view, decompression within bounds, files for their owner alone."""
    for module in names.WRITERS_OF_FLOWS:
        patches.set(module.value, "open", saved_files.open_private)
    patches.replace(names.DECODERS, decoding.DECODERS)
    patches.replace(names.CODECS, decoding.CODECS)
    decoding.bound_views(patches)
    contentviews.add(OllamaContentview)
    patches.on_restore(lambda: names.remove_view(OllamaContentview.name))


def restore() -> None:
    """Take all back, for connections that begin from now on."""
    _patches.restore()
