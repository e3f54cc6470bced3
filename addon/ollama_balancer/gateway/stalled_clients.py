"""Finds clients that have stopped reading, which would hold a slot forever.

A client is stalled if its unsent data does not change: its host is not read meanwhile. Where the system reports how
many bytes the peer has acknowledged, that counts too, because the kernel buffers so much that a slow client may appear
to stand still.
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Hashable, Iterable

SEND_SECONDS = 60.0
"""Seconds without progress after which a client is stalled."""

CHECKS = 12
"""Checks within that time."""

_ACKED = struct.Struct("@120xQ")
"""Of the system's `tcp_info`, the bytes that the other side has received (Linux, tcp(7))."""


class StalledClients:
    """Tracks the unsent data of clients."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due = clock()
        self._seen: dict[Hashable, tuple[Hashable, float]] = {}
        """The amount by client, and since when it has not changed."""

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def due(self) -> bool:
        """Whether the next check is due."""
        return self._clock() >= self._due

    def find_stalled[K: Hashable](self, waiting: Iterable[tuple[K, Hashable]]) -> list[K]:
        """Return the clients that have read nothing for too long; `waiting` are the clients with unsent data, and how
        much.
        """
        now = self._clock()
        self._due = now + SEND_SECONDS / CHECKS
        before, self._seen = self._seen, {}
        stalled = []
        for client, amount in waiting:
            previous = before.get(client)
            since = previous[1] if previous is not None and previous[0] == amount else now
            if now - since >= SEND_SECONDS:
                stalled.append(client)
            else:
                self._seen[client] = amount, since
        return stalled


def unsent(writer: object) -> Hashable | None:
    """The unsent data of a writer, as a value that changes with progress; None if there is none."""
    if not isinstance(writer, asyncio.StreamWriter):
        return None
    size = writer.transport.get_write_buffer_size()
    return (size, _received(writer)) if size else None


def _received(writer: asyncio.StreamWriter) -> int | None:
    if sys.platform != "linux":  # others have another `tcp_info`
        return None
    connection = writer.get_extra_info("socket")
    try:
        tcp_info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.size)
        received: int = _ACKED.unpack(tcp_info)[0]
    except (AttributeError, OSError, struct.error):
        return None
    return received
