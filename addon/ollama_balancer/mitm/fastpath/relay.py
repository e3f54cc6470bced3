"""Hands the chunks of a streamed answer from the agent's connection to the client's, past mitmproxy's layers.

mitmproxy reads each chunk in a coroutine, takes it apart, sends it through its layers and puts it together again as it
was, which costs more than all the rest of a stream. Nothing about the chunk itself needs that: where both sides are
plain HTTP/1.1 with a chunked body, what came can go out. So, once the head of such an answer is out, the agent's
transport gets another protocol, the relay, until the body ends or anything else than a plain chunk comes.

- mitmproxy's layers know nothing of it. For them nothing has come since, so they must be at the boundary of two
  chunks, with empty buffers, when the relay begins, and must find themselves there when it stops: only whole chunks go
  out. Of a chunk that is not whole yet nothing has gone out; its bytes are handed over when the relay stops.
- The relay stops at the first byte that is no plain chunk of bearable size: the last chunk, trailers, extensions, what
  is malformed, what is large. mitmproxy's layers do with it whatever they always do, so there is one place where an
  answer ends, fails, or is refused. They are not relieved again in the same answer.
- Where the event loop can have a `RelaySelector`, it also goes past asyncio: it receives from the agent's socket and
  sends to the client's. What the client's does not take at once goes to its transport, and all else until that is out.
- The end of either connection stops it too, before the layers hear of the end.
- A client that does not take what it is sent holds up its agent: the agent's transport isn't read until the client's
  has room. mitmproxy's own reader does the same to that transport, but only while it holds bytes, which is never
  while the relay runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy.layers.http import Http1Client, Http1Server
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.proxy.tunnel import TunnelLayer
from mitmproxy.utils import asyncio_utils

from ..compat.h11_names import ChunkedReader, is_between_chunks
from ..compat.mitmproxy_names import is_waiting
from ..compat.python_names import has_unread, socket_of
from .selector import Receiver, RelaySelector, install

if TYPE_CHECKING:
    from ..shared_stream import SharedStream

LARGEST_CHUNK = 64 * 1024
"""Bytes of payload. Larger chunks are passed on in pieces by mitmproxy's layers."""

BATCH = 32
"""Chunks that are parsed together after they were sent, which is cheaper."""

BATCH_BYTES = 16 * 1024

ACTIVITY_SECONDS = 0.1
"""Seconds between two calls of `on_activity`."""

_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")
_LONGEST_SIZE = 10
"""Bytes of the longest line that `_SIZE` takes."""

_SMALL_SIZES = {b"%x" % size: size for size in range(1, 1024)}
"""The usual sizes as the server writes them."""


class ChunkSplitter:
    """Splits a chunked body into complete chunks. Anything but a plain chunk ends it: see `ended` and `remainder`."""

    __slots__ = ("_held", "_missing", "ended")

    def __init__(self) -> None:
        self._held = bytearray()
        self._missing = 0
        """With fewer further bytes no chunk can be complete."""
        self.ended = False
        """Whether something other than a plain chunk was found; nothing may be fed any more."""

    def single_chunk(self, data: bytes) -> bytes:
        """The payload if `data` is exactly one small chunk, which is the usual case; otherwise it must be fed."""
        at = data.find(b"\r\n", 1, 5)
        size = _SMALL_SIZES.get(data[:at]) if at > 0 else None
        if size is not None and at + size + 4 == len(data) and not self._held and data.endswith(b"\r\n"):
            return data[at + 2 : -2]
        return b""

    def feed(self, data: bytes) -> tuple[bytes, list[bytes]]:
        """The bytes of the chunks that are complete now, and their payloads."""
        if self._held:
            self._held += data
            if len(data) < self._missing:
                self._missing -= len(data)
                return b"", []
            data = bytes(self._held)
        payloads: list[bytes] = []
        at, end = 0, len(data)
        self._missing = 0
        while at < end:
            size_line = _SIZE.match(data, at)
            if size_line is None:
                self.ended = end - at >= _LONGEST_SIZE or not _may_become_size(data[at:])
                break
            size, start = int(size_line[1], 16), size_line.end()
            stop = start + size
            if size == 0 or size > LARGEST_CHUNK:
                self.ended = True
                break
            if stop + 2 > end:
                self._missing = stop + 2 - end
                self.ended = data[stop:end] not in (b"", b"\r")
                break
            if data[stop : stop + 2] != b"\r\n":
                self.ended = True
                break
            payloads.append(data[start:stop])
            at = stop + 2
        if at == end:
            if self._held:
                self._held.clear()
            return data, payloads
        self._held = bytearray(data[at:])
        return data[:at], payloads

    @property
    def remainder(self) -> bytes:
        """Bytes that belong to no complete chunk."""
        return bytes(self._held)


def _may_become_size(data: bytes) -> bool:
    """Whether these fewer than `_LONGEST_SIZE` bytes can be the start of what `_SIZE` takes."""
    return re.fullmatch(rb"[0-9a-fA-F]{1,8}\r?", data) is not None


MAX_RECEIVED = 16 * 1024
"""Bytes at once. asyncio's usual way to receive allocates 256 KiB for each chunk, which costs more than the rest of
this module."""

_RECEIVED = memoryview(bytearray(MAX_RECEIVED))
"""The receive buffer of all relays: it is read at once."""


class StreamRelay(asyncio.BufferedProtocol):
    """Relays one answer from the agent's transport to the client's. `stop` returns the transport to mitmproxy.

    `pass_on` is the response's `stream`: it sees all payloads in batches and must not change them. `on_activity` is
    called when data arrives, at most every ACTIVITY_SECONDS. With a `selector` it reads and writes the sockets without
    asyncio, unless the client is slow.
    """

    def __init__(
        self,
        upstream: asyncio.Transport,
        client: asyncio.StreamWriter,
        response: http.Response,
        pass_on: Callable[[bytes], object],
        on_activity: Callable[[], None],
        selector: RelaySelector | None = None,
    ) -> None:
        self._upstream = upstream
        self._client = client
        self._to_client = client.transport
        self._response = response
        self._pass_on = pass_on
        self._on_activity = on_activity
        self._last_activity = float("-inf")
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._most_unsent = self._to_client.get_write_buffer_limits()[1]
        self._splitter = ChunkSplitter()
        self._draining: asyncio.Task[None] | None = None
        """Waits for the client; nothing is read meanwhile."""
        self._protocol = cast(asyncio.StreamReaderProtocol, upstream.get_protocol())
        """mitmproxy's own."""
        self._stopped = False
        upstream.set_protocol(self)
        self._client_backlogged = True
        """Whether the client's transport may have unsent data."""
        self._receivers: dict[int, Receiver] = {}
        self._agent_socket = self._client_socket = None
        if selector is not None:
            self._agent_socket, self._client_socket = socket_of(upstream), socket_of(self._to_client)
            self._receivers = selector.receivers
        self._descriptor = -1
        if self._agent_socket is not None:
            self._descriptor = self._agent_socket.fileno()
            self._receivers[self._descriptor] = self.receive

    def get_buffer(self, sizehint: int) -> memoryview:
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        self._forward(bytes(_RECEIVED[:nbytes]), time.monotonic())

    def receive(self, now: float) -> bool:
        """Read without asyncio; returns whether the event loop must run callbacks."""
        assert self._agent_socket is not None
        try:
            try:
                data = self._agent_socket.recv(MAX_RECEIVED)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                data = b""
            if data:
                return self._forward(data, now)
            # At the end of the connection asyncio takes over; it meets that, too.
        except Exception as e:
            # As asyncio does.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "an answer cannot be relayed", "exception": e, "transport": self._upstream}
            )
            self._upstream.abort()
        self._leave_selector()
        return True

    def _leave_selector(self) -> None:
        self._receivers.pop(self._descriptor, None)

    def _forward(self, data: bytes, now: float) -> bool:
        """Forward complete chunks; returns whether anything else has happened."""
        to_client = self._to_client
        if self._stopped:  # some event loops go on with what they had received before the stop
            self._protocol.data_received(data)
            return True
        if self._response.stream is not self._pass_on or to_client.is_closing():
            # Somebody else wants to see the rest, or nobody does.
            self.stop()
            self._protocol.data_received(data)
            return True
        if now - self._last_activity >= ACTIVITY_SECONDS:
            self._last_activity = now
            self._on_activity()
        payload = self._splitter.single_chunk(data)
        if payload:
            whole = data
            self._pending.append(payload)
        else:
            whole, payloads = self._splitter.feed(data)
            self._pending += payloads
        needs_turn = False
        if whole:
            self._pending_bytes += len(whole)
            if self._client_backlogged:
                self._client_backlogged = self._client_socket is None or to_client.get_write_buffer_size() > 0
            sent = 0
            if self._client_socket is not None and not self._client_backlogged:
                try:
                    sent = self._client_socket.send(whole)
                except OSError:
                    sent = 0  # the transport meets it again
            if sent < len(whole):
                self._client_backlogged = needs_turn = True
                to_client.write(whole[sent:])
                if to_client.get_write_buffer_size() > self._most_unsent and self._draining is None:
                    self._upstream.pause_reading()
                    self._draining = asyncio_utils.create_task(self._drain(), name="slow client", keep_ref=True)
            if len(self._pending) >= BATCH or self._pending_bytes >= BATCH_BYTES:
                self._flush()
                needs_turn = True
        if self._splitter.ended:
            self.stop()
            return True
        return needs_turn

    def _flush(self) -> None:
        if self._pending:
            payloads = b"".join(self._pending)
            self._pending.clear()
            self._pending_bytes = 0
            self._pass_on(payloads)

    async def _drain(self) -> None:
        with contextlib.suppress(OSError):  # then the client is gone, and mitmproxy closes both sides
            await self._client.drain()
            self._draining = None
            self._upstream.resume_reading()

    def stop(self) -> None:
        """Return the transport to mitmproxy. Does nothing the second time."""
        if self._stopped:
            return
        self._stopped = True
        self._leave_selector()
        self._upstream.set_protocol(self._protocol)
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None
            self._upstream.resume_reading()
        remainder = self._splitter.remainder
        if remainder:
            self._protocol.data_received(remainder)
        self._flush()  # mitmproxy goes on in a later turn of the loop

    def eof_received(self) -> bool | None:
        self.stop()
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


def suits(stream: SharedStream) -> bool:
    """Whether the head of an answer allows the relay."""
    request, response = stream.flow.request, stream.flow.response
    return (
        response is not None
        and stream.ours is not None
        and stream.ours.fan_out is None
        and request.http_version == response.http_version == "HTTP/1.1"
        and request.method.upper() != "HEAD"
        and response.headers.get("transfer-encoding", "").lower() == "chunked"
        and "content-encoding" not in response.headers
        and not stream.context.options.store_streamed_bodies
    )


def begin(
    handler: ConnectionHandler,
    stream: SharedStream,
    pass_on: Callable[[bytes], object],
    on_activity: Callable[[], None],
    *,
    by_selector: bool,
) -> StreamRelay | None:
    """Relay the rest of the answer; None, with nothing changed, if that is not possible at this moment.

    `by_selector`: bypass asyncio as well, where the event loop allows it.
    """
    server, client = stream.context.server, stream.context.client
    response = stream.flow.response
    connections = stream.balanced_layer.connections
    from_agent, from_client = handler.transports.get(server), handler.transports.get(client)
    if (
        response is None
        or from_agent is None
        or from_client is None
        or not _between_chunks(stream, connections.get(server))
        or not _is_plain(connections.get(client), Http1Server)
        or not server.state == client.state == ConnectionState.OPEN
    ):
        return None
    reader, writer, client_writer = from_agent.reader, from_agent.writer, from_client.writer
    if not (
        isinstance(reader, asyncio.StreamReader)
        and isinstance(writer, asyncio.StreamWriter)
        and isinstance(client_writer, asyncio.StreamWriter)
        and not has_unread(reader)
        and not reader.at_eof()
        and reader.exception() is None
    ):
        return None
    upstream = cast(asyncio.Transport, writer.transport)
    if (
        upstream.is_closing()
        or not upstream.is_reading()
        or client_writer.is_closing()
        or type(upstream.get_protocol()) is not asyncio.StreamReaderProtocol
    ):
        return None
    selector = install(asyncio.get_running_loop()) if by_selector else None
    return StreamRelay(upstream, client_writer, response, pass_on, on_activity, selector)


def _is_plain(connection: object, kind: type[Http1Client] | type[Http1Server]) -> bool:
    """Whether this is the layer of a plain HTTP/1 connection without TLS or another tunnel."""
    return type(connection) is kind and not any(isinstance(outer, TunnelLayer) for outer in connection.context.layers)


def _between_chunks(stream: SharedStream, connection: object) -> bool:
    """Whether everything from the agent has been passed on, up to the end of a chunk."""
    if is_waiting(stream) or stream.server_state != stream.state_stream_response_body:
        return False
    # mitmproxy puts a layer that connects around it.
    layers = getattr(getattr(connection, "context", None), "layers", [None])
    http1 = layers[-1]
    if not isinstance(http1, Http1Client) or not _is_plain(http1, Http1Client):
        return False
    body = getattr(http1, "body_reader", None)
    return (
        http1.stream_id == stream.stream_id
        and http1.state == http1.read_body
        and not http1.buf
        and isinstance(body, ChunkedReader)
        and is_between_chunks(body)
    )
