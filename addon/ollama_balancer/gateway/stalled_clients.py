"""Finds the clients that do not take their answers: for them a slot of a host must not be held for ever.

What a client takes is told by what waits for it: while it takes nothing, that stays as it is, since its host is read no
further. Where the system tells how many bytes the other side has received, that counts as well, as the system may hold
so much itself that a slow client's answer seems to stand still.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Hashable, Iterable

SEND_SECONDS = 60.0
"""How long a client may take nothing of what waits for it."""

CHECKS = 12
"""Within that time."""

_ACKED = struct.Struct("@120xQ")
"""Of the system's `tcp_info`, the bytes that the other side has received (Linux, tcp(7))."""


class StalledClients:
    """What waits for clients. Seconds are those of `clock`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due = clock()
        self._seen: dict[Hashable, tuple[Hashable, float]] = {}
        """By whom it waits for: how much, and since when."""

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def due(self) -> bool:
        """Whether it is time for a look."""
        return self._clock() >= self._due

    def find_stalled[K: Hashable](self, waiting: Iterable[tuple[K, Hashable]]) -> list[K]:
        """Given for whom something waits, and how much: those who have taken nothing of it for too long."""
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
    """How much waits for the client of that writer, in a form that changes when it takes something; None: nothing."""
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
