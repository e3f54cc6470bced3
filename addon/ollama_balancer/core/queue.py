"""The queue of requests that wait for an agent: fair between clients, FIFO within each client.

Requests that the same agents could serve share a queue key. Under each key the clients take turns, so a client that
sends a thousand requests does not keep the others waiting, and a key whose agents are busy blocks no other key. Turns
go round robin over groups, then over the clients of a group: a client that can change its name at will gets no more
than its group's turns. The cost of a turn does not depend on the length of the queue.

The queue knows the order, and which tickets have their prefix cached on which agent. The scheduler decides which agent
a ticket gets, and when.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice
from typing import Any

from .agent import Agent
from .demand import Demand
from .leases import Lease

UNKNOWN_RETRY = 5
"""Seconds for Retry-After while the pace of the queue is unknown: a guess."""

LONGEST_RETRY = 600
"""Seconds: twice as long as a request may wait by default."""

WEIGHT = 0.1
"""The weight of the newest interval between two turns in the moving average."""


type FairnessKey = tuple[str, str]
"""The group whose turns a request uses, and the client within that group."""


class QueueFullError(Exception):
    """The queue has reached its size."""


@dataclass(frozen=True, slots=True)
class QueueKey:
    """What a request waits for: tickets with equal keys can be served by the same agents."""

    model: str
    """A canonical name."""
    agent: Agent | None = None
    """The agent that the request is pinned to."""
    tried: frozenset[Agent] = frozenset()
    """Agents that have already failed the request."""


class Ticket:
    """A request in the queue.

    `notify` is called once it leaves the queue with a lease, or with None when no agent is left that could serve it.
    """

    __slots__ = ("affinity", "client", "demand", "fairness_key", "key", "notify", "overtaken", "since", "waiting")

    def __init__(
        self,
        key: QueueKey,
        demand: Demand,
        client: str,
        fairness_key: FairnessKey,
        since: float,
        notify: Callable[[Lease | None], None],
        affinity: Agent | None,
    ) -> None:
        self.key = key
        self.affinity = affinity
        """The agent that has a prefix of its prompt cached."""
        self.overtaken = 0
        """How many other tickets were served before it out of turn."""
        self.demand = demand
        self.client = client
        """The name that people see."""
        self.fairness_key = fairness_key
        self.since = since
        self.notify = notify
        self.waiting = True

    def __repr__(self) -> str:
        return f"Ticket({self.key.model}, {self.client}, since {self.since:.3f})"


type _Ordered = OrderedDict[Ticket, None]


class _Lane:
    """The tickets with one queue key."""

    __slots__ = ("arrivals", "groups")

    def __init__(self) -> None:
        self.groups: OrderedDict[str, OrderedDict[str, _Ordered]] = OrderedDict()
        """By group and client: the next turn is the first group's, its first client's, that client's oldest ticket."""
        self.arrivals: _Ordered = OrderedDict()
        """All tickets in order of arrival."""

    def add(self, ticket: Ticket) -> None:
        group, client = ticket.fairness_key
        clients = self.groups.get(group)
        if clients is None:
            clients = self.groups[group] = OrderedDict()
        tickets = clients.get(client)
        if tickets is None:
            tickets = clients[client] = OrderedDict()
        tickets[ticket] = self.arrivals[ticket] = None

    def remove(self, ticket: Ticket) -> None:
        group, client = ticket.fairness_key
        del self.arrivals[ticket]
        clients = self.groups[group]
        tickets = clients[client]
        del tickets[ticket]
        if not tickets:
            del clients[client]
            if not clients:
                del self.groups[group]

    def first(self) -> Ticket:
        return next(iter(next(iter(next(iter(self.groups.values())).values()))))

    def rotate(self, ticket: Ticket) -> None:
        """Move the ticket's group, and its client within the group, to the back."""
        group, client = ticket.fairness_key
        self.groups.move_to_end(group)
        self.groups[group].move_to_end(client)

    def in_turn(self) -> Iterator[Ticket]:
        """The tickets in the order of their turns, computed lazily."""
        return _alternating(_alternating(map(iter, clients.values())) for clients in self.groups.values())


def _alternating[T](iterators: Iterable[Iterator[T]]) -> Iterator[T]:
    """The first item of each iterator, then the second of each, and so on."""
    alive = []
    for lane in iterators:
        yield from islice(lane, 1)
        alive.append(lane)
    while alive:
        left = []
        for lane in alive:
            for each in islice(lane, 1):
                yield each
                left.append(lane)
        alive = left


class RequestQueue:
    """`clock` gives monotonic seconds; `size`, which may be changed, is the most tickets it holds."""

    def __init__(self, clock: Callable[[], float], size: int = 1000) -> None:
        self.size = size
        self._clock = clock
        self._models: dict[str, dict[QueueKey, _Lane]] = {}
        self._all: _Ordered = OrderedDict()
        self._by_affinity: dict[tuple[QueueKey, Agent], _Ordered] = {}
        self._counts: Counter[str] = Counter()
        """Tickets by model."""
        self._interval: float | None = None
        """Seconds between two turns while the queue is not empty: a moving average."""
        self._last: float = 0.0
        """When the last ticket was called, or the queue was last empty."""

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return f"RequestQueue({len(self._all)} of {self.size}; {len(self._models)} models)"

    def join(
        self,
        key: QueueKey,
        client: str,
        notify: Callable[[Lease | None], None],
        demand: Demand | None = None,
        affinity: Agent | None = None,
        fairness_key: FairnessKey | None = None,
    ) -> Ticket:
        """Add a request; without a `fairness_key` the client is a group of its own.

        QueueFullError: the queue has reached its size.
        """
        if len(self._all) >= self.size:
            raise QueueFullError(f"{len(self._all)} requests wait already")
        now = self._clock()
        if not self._all:
            self._last = now
        ticket = Ticket(key, demand or Demand(key.model), client, fairness_key or (client, ""), now, notify, affinity)
        keys = self._models.setdefault(key.model, {})
        lane = keys.get(key)
        if lane is None:
            lane = keys[key] = _Lane()
        lane.add(ticket)
        self._all[ticket] = None
        if affinity is not None:
            self._by_affinity.setdefault((key, affinity), OrderedDict())[ticket] = None
        self._counts[key.model] += 1
        return ticket

    def leave(self, ticket: Ticket) -> bool:
        """Remove the ticket; False if it had left before."""
        if not ticket.waiting:
            return False
        ticket.waiting = False
        del self._all[ticket]
        self.drop_affinity(ticket)
        self._counts[ticket.key.model] -= 1
        if not self._counts[ticket.key.model]:
            del self._counts[ticket.key.model]
        keys = self._models[ticket.key.model]
        lane = keys[ticket.key]
        lane.remove(ticket)
        if not lane.arrivals:
            del keys[ticket.key]
            if not keys:
                del self._models[ticket.key.model]
        return True

    def first(self, key: QueueKey) -> Ticket | None:
        """The ticket whose turn is next; None if there is none."""
        lane = self._models.get(key.model, {}).get(key)
        return None if lane is None else lane.first()

    def oldest_with_affinity(self, key: QueueKey, agent: Agent) -> Ticket | None:
        """The oldest ticket that has its prefix cached on the agent."""
        found = self._by_affinity.get((key, agent))
        return None if found is None else next(iter(found))

    def drop_affinity(self, ticket: Ticket) -> None:
        """The agent has evicted the ticket's prefix."""
        affinity, ticket.affinity = ticket.affinity, None
        if affinity is not None:
            key = ticket.key, affinity
            del self._by_affinity[key][ticket]
            if not self._by_affinity[key]:
                del self._by_affinity[key]

    def next_tickets(self, key: QueueKey, most: int) -> list[Ticket]:
        """The tickets whose turns are next: the first of each group, then the second of each, and so on."""
        lane = self._models.get(key.model, {}).get(key)
        return [] if lane is None else list(islice(lane.in_turn(), most))

    def call(self, key: QueueKey, ticket: Ticket | None = None) -> Ticket:
        """Remove the next ticket, or the given one out of turn; the turn of its group and client is used up.

        KeyError: there are no tickets with that key.
        """
        lane = self._models[key.model][key]
        if ticket is None:
            ticket = lane.first()
        lane.rotate(ticket)
        self.leave(ticket)
        now = self._clock()
        interval, self._last = now - self._last, now
        self._interval = interval if self._interval is None else self._interval + WEIGHT * (interval - self._interval)
        return ticket

    def active_keys(self, model: str | None = None) -> list[QueueKey]:
        """The keys that have tickets, for one model or for all; the key whose next ticket is oldest comes first."""
        if model is not None:
            found = list(self._models.get(model, ()))
        else:
            found = [key for keys in self._models.values() for key in keys]
        return found if len(found) < 2 else sorted(found, key=self._first_since)

    def tickets(self, key: QueueKey) -> list[Ticket]:
        """All tickets with that key, in order of arrival."""
        lane = self._models.get(key.model, {}).get(key)
        return [] if lane is None else list(lane.arrivals)

    def count(self, model: str) -> int:
        """The number of requests that wait for the model."""
        return self._counts.get(model, 0)

    def last(self, key: QueueKey) -> Ticket:
        """The newest ticket with that key. KeyError: there is none."""
        return next(reversed(self._models[key.model][key].arrivals))

    def retry_after(self) -> int:
        """Seconds for Retry-After, from 1 to 600: when the requests that wait now are expected to be served."""
        if self._interval is None:
            return UNKNOWN_RETRY
        return round(max(1.0, min(float(LONGEST_RETRY), self._interval * len(self._all))))

    def describe(self, most: int = 100) -> dict[str, Any]:
        """The queue as the control API shows it; of models and clients, the `most` with the most requests."""
        clients = Counter(ticket.client for ticket in self._all)
        oldest = next(iter(self._all), None)
        return {
            "length": len(self._all),
            "oldest": None if oldest is None else round(self._clock() - oldest.since, 3),
            "models": _largest(self._counts, most),
            "clients": _largest(clients, most),
        }

    def _first_since(self, key: QueueKey) -> float:
        first = self.first(key)
        return first.since if first is not None else 0.0


def _largest(counts: Counter[str], most: int) -> dict[str, int]:
    return dict(nsmallest(most, counts.items(), key=lambda item: (-item[1], item[0])))
