"""Limits HTTP/2 clients: the data buffered for them, and frames that ask for nothing.

mitmproxy buffers without limit what does not fit into a client's flow-control windows. Here reading from the host
pauses while more than a little is buffered, as the socket of an HTTP/1.1 client does it.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from mitmproxy.connection import Connection
from mitmproxy.proxy.layer import CommandGenerator

from .compat.mitmproxy_names import DRAIN_WRITERS, H2_EVENT, BufferedH2Connection, SendH2Data

MAX_HELD = 64 * 1024
"""Bytes buffered for one stream above which reading from the host pauses."""

ROOM = MAX_HELD // 2
"""Bytes down to which the buffer must drain before reading resumes."""

PIECE_OVERHEAD = 128
"""Memory overhead of each buffered piece."""

READ_AT_ONCE = 4 * 1024
"""Bytes of frames that are parsed before their cost is checked."""

BURST = 1000.0
"""Units that the frames of a connection may cost at once."""

PER_SECOND = 500.0
"""Units that are added each second."""

RESET_COST = 5.0
"""Cost of a reset stream, for which a request has been started."""

SMALL_COST = 0.1
"""Cost of a frame that an honest client may send once per frame that it receives, or of a few bytes of body."""

SMALL_DATA = 256
"""Size of a body frame below which the frame itself is the work."""


class FloodError(h2.exceptions.ProtocolError):
    """More frames than any honest client sends."""


def cost_of(event: h2.events.Event) -> float:
    """The cost of a frame; zero if other limits apply to it."""
    match event:
        case h2.events.StreamReset():
            return RESET_COST
        case h2.events.WindowUpdated():
            return SMALL_COST
        case h2.events.DataReceived():
            if event.data or event.stream_ended:
                return SMALL_COST if len(event.data or b"") < SMALL_DATA else 0.0
            return 1.0
        case h2.events.RequestReceived() | h2.events.TrailersReceived() | h2.events.StreamEnded():
            return 0.0
    return 1.0  # settings, pings, priorities, and all that is unknown


class Allowance:
    """A token bucket. Seconds are those of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = BURST
        self._at = clock()

    def spend(self, units: float) -> bool:
        """Spend units; returns whether enough were left."""
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._at) * PER_SECOND) - units
        self._at = now
        return self._left >= 0


class HeldPieces(deque[SendH2Data]):
    """The buffered data of one stream; `size` is its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def append(self, piece: SendH2Data, /) -> None:
        self.size += len(piece.data) + PIECE_OVERHEAD
        super().append(piece)

    def appendleft(self, piece: SendH2Data, /) -> None:
        self.size += len(piece.data) + PIECE_OVERHEAD
        super().appendleft(piece)

    def popleft(self) -> SendH2Data:
        piece = super().popleft()
        self.size -= len(piece.data) + PIECE_OVERHEAD
        return piece


class BoundedH2Connection(BufferedH2Connection):
    """mitmproxy's connection, which also reports when a buffer has drained and rejects floods of frames."""

    def __init__(self, config: h2.config.H2Configuration) -> None:
        super().__init__(config)
        self.stream_buffers = defaultdict(HeldPieces)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._allowance = Allowance()

    def held(self, stream_id: int) -> int:
        """Bytes buffered for that stream."""
        pieces = self.stream_buffers.get(stream_id)
        return pieces.size if isinstance(pieces, HeldPieces) else 0

    def all_held(self) -> list[tuple[int, int]]:
        """Streams with buffered data, and how much."""
        return [(each, pieces.size) for each, pieces in self.stream_buffers.items() if isinstance(pieces, HeldPieces)]

    async def room(self, stream_id: int) -> None:
        """Wait until the buffer of that stream has drained or the stream is gone."""
        while self.held(stream_id) > ROOM:
            future = self._waiting.get(stream_id)
            if future is None:
                future = self._waiting[stream_id] = asyncio.get_running_loop().create_future()
            await asyncio.shield(future)

    def receive_data(self, data: Any) -> list[h2.events.Event]:
        """The events of the data; window updates are applied once for all."""
        found: list[h2.events.Event] = []
        try:
            for start in range(0, len(data), READ_AT_ONCE):
                events = super(BufferedH2Connection, self).receive_data(data[start : start + READ_AT_ONCE])
                if not self.config.client_side and not self._allowance.spend(sum(map(cost_of, events))):
                    raise FloodError("too many control frames or cancelled requests")
                found += events
            return self._take_updates(found)
        finally:
            self._wake()

    def _take_updates(self, events: list[h2.events.Event]) -> list[h2.events.Event]:
        remaining: list[h2.events.Event] = []
        updated: dict[int, None] = {}
        for event in events:
            match event:
                case h2.events.WindowUpdated():
                    updated[event.stream_id or 0] = None
                    continue
                case h2.events.RemoteSettingsChanged():
                    if h2.settings.SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
                        updated[0] = None
                case h2.events.StreamReset():
                    self._drop(event.stream_id)
                case h2.events.ConnectionTerminated():
                    self.stream_buffers.clear()
                    self.stream_trailers.clear()
            remaining.append(event)
        if 0 in updated:
            self.connection_window_updated()
        else:
            for stream_id in updated:
                self.stream_window_updated(stream_id)
        return remaining

    def reset_stream(self, stream_id: int, error_code: int = 0) -> None:
        self._drop(stream_id)
        super().reset_stream(stream_id, error_code)
        self._wake()

    def release(self) -> None:
        """The client is gone."""
        self.stream_buffers.clear()
        self.stream_trailers.clear()
        self._wake()

    def _drop(self, stream_id: int) -> None:
        self.stream_buffers.pop(stream_id, None)
        self.stream_trailers.pop(stream_id, None)

    def _wake(self) -> None:
        for stream_id in [each for each in self._waiting if self.held(each) <= ROOM]:
            future = self._waiting.pop(stream_id)
            if not future.done():
                future.set_result(None)


class BackloggedHosts:
    """Host connections whose answers are buffered for one client."""

    def __init__(self, client_id: str, connection: BoundedH2Connection) -> None:
        self.connection = connection
        self._streams: dict[Connection, int] = {}
        _of_clients[client_id] = self

    def check(self, stream_id: int, host: Connection) -> None:
        """A piece of an answer from that host has been passed on."""
        if self.connection.held(stream_id) > MAX_HELD:
            self._streams[host] = stream_id

    def __contains__(self, host: Connection) -> bool:
        return host in self._streams

    async def wait(self, handler: Any) -> None:
        """Called by each task that reads a connection: wait if it reads such a host."""
        task = asyncio.current_task()
        for host, stream_id in list(self._streams.items()):
            io = handler.transports.get(host)
            if io is None:
                self._streams.pop(host, None)
            elif io.handler is task:
                try:
                    await self.connection.room(stream_id)
                finally:
                    self._streams.pop(host, None)


_of_clients: WeakValueDictionary[str, BackloggedHosts] = WeakValueDictionary()


def is_backlogged(client_id: str, host: Connection | None) -> bool:
    """Whether the answer of that host waits for the windows of the client."""
    backlogged = _of_clients.get(client_id)
    return backlogged is not None and host is not None and host in backlogged


async def drain_writers(self: Any) -> None:
    """`ConnectionHandler.drain_writers`, which waits for the windows of HTTP/2 as well."""
    await DRAIN_WRITERS.original(self)
    if _of_clients:
        backlogged = _of_clients.get(self.client.id)
        if backlogged is not None:
            await backlogged.wait(self)


def handle_event(self: Any, event: Any) -> CommandGenerator[bool]:
    """`Http2Connection.handle_h2_event`, which asks the sender of a flood to calm down, and closes."""
    if isinstance(event, FloodError):
        yield from self.protocol_error(f"HTTP/2: {event}", h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
        return True
    is_over: bool = yield from H2_EVENT.original(self, event)
    return is_over
