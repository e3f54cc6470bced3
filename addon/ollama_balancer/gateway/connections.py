"""How many clients may be connected, and how long one may take to say what it wants.

At the limit the connection that has been idle for longest makes room: a client that has nothing to say cannot keep
others, or whoever looks what is wrong, out. Nothing here does I/O: whoever asks closes what is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

HEAD_SECONDS = 30.0
"""From the connection, or the first byte of another request, to the end of the head."""

PART_OF_ONE = 0.75
"""Of all connections, how many may come from one address."""


class Connections:
    """Clients by the ids of their connections. `clock` gives monotonic seconds; `most` may be changed."""

    def __init__(self, clock: Callable[[], float], most: int) -> None:
        self.most = most
        self._clock = clock
        self._addresses: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        """Requests, by client."""
        self._idle: dict[str, None] = {}
        """Those that have no request, the one first that has had none for longest."""
        self._heads: dict[str, float] = {}
        """Those of which a head is waited for, by the time until which it has to be there."""

    def __len__(self) -> int:
        return len(self._addresses)

    def __repr__(self) -> str:
        return f"Connections({len(self)} of {self.most}, {len(self._idle)} idle, {len(self._heads)} without a head)"

    def add(self, client: str, address: str) -> tuple[bool, str | None]:
        """Whether it may come in, and which other has to go for that."""
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
        """The head of its request is there."""
        if client in self._addresses:
            self._heads.pop(client, None)
            self._idle.pop(client, None)
            self._running[client] += 1

    def ended(self, client: str) -> None:
        """One of its requests is over."""
        if client in self._running:
            self._running[client] -= 1
            if self._running[client] <= 0:
                del self._running[client]
                self._idle[client] = None

    def head_begun(self, client: str) -> None:
        """A part of a head has come."""
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
        """Those whose head has not come in time."""
        now = self._clock()
        overdue_clients = []
        for client, until in self._heads.items():
            if until > now:
                break
            overdue_clients.append(client)
        return overdue_clients
