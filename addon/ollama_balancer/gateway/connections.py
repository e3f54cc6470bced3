"""Limits the number of client connections and the time to send a request head.

At the limit the connection that has been idle longest is evicted, so that idle clients lock nobody out. This module
does no I/O: its caller closes the connections.
"""

from collections import Counter
from collections.abc import Callable

HEAD_SECONDS = 30.0
"""Seconds from the connection, or from the first byte of a further request, to the end of the head."""

PART_OF_ONE = 0.75
"""Share of all connections that one address may have."""


class Connections:
    """Clients by connection id. `clock` returns monotonic seconds; `most` is the limit and may be changed."""

    def __init__(self, clock: Callable[[], float], most: int) -> None:
        self.most = most
        self._clock = clock
        self._addresses: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        """Running requests by client."""
        self._idle: dict[str, None] = {}
        """Clients without a running request, the one idle longest first."""
        self._heads: dict[str, float] = {}
        """Deadlines of the request heads that are awaited."""

    def __len__(self) -> int:
        return len(self._addresses)

    def __repr__(self) -> str:
        return f"Connections({len(self)} of {self.most}, {len(self._idle)} idle, {len(self._heads)} without a head)"

    def add(self, client: str, address: str) -> tuple[bool, str | None]:
        """Whether the client is accepted, and which client to evict for it."""
        full = len(self._addresses) >= self.most
        too_many = self._counts[address] >= max(1, int(self.most * PART_OF_ONE))
        evicted: str | None = None
        if too_many:
            evicted = next((idle for idle in self._idle if self._addresses[idle] == address), None)
        elif full:
            evicted = next(iter(self._idle), None)
        if (full or too_many) and evicted is None:
            return False, None
        if evicted is not None:
            self.discard(evicted)
        self._addresses[client] = address
        self._counts[address] += 1
        self._idle[client] = None
        self._heads[client] = self._clock() + HEAD_SECONDS
        return True, evicted

    def address_of(self, client: str) -> str:
        return self._addresses.get(client, "a client")

    def begun(self, client: str) -> None:
        """A request head is complete."""
        if client in self._addresses:
            self._heads.pop(client, None)
            self._idle.pop(client, None)
            self._running[client] += 1

    def ended(self, client: str) -> None:
        """One of its requests has ended."""
        if client in self._running:
            self._running[client] -= 1
            if self._running[client] <= 0:
                del self._running[client]
                self._idle[client] = None

    def head_begun(self, client: str) -> None:
        """A part of a request head has arrived."""
        if client in self._addresses and client not in self._heads:
            self._heads[client] = self._clock() + HEAD_SECONDS

    def discard(self, client: str) -> None:
        """The agent was removed."""
        address = self._addresses.pop(client, None)
        if address is not None:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]
        self._idle.pop(client, None)
        self._heads.pop(client, None)
        self._running.pop(client, None)

    def overdue(self) -> list[str]:
        """Clients whose request head is overdue."""
        now = self._clock()
        overdue_clients = []
        for client, until in self._heads.items():
            if until > now:
                break
            overdue_clients.append(client)
        return overdue_clients
