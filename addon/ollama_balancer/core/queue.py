"""The line of requests that wait for an agent: fair between clients, first in, first out for each.

Requests that any of the same agents could serve wait at the same place. At each place the clients take turns, so that
one who sends a thousand requests does not keep the others waiting; a place whose agents are busy holds up no other.
Turns go to groups first, and within a group to its clients: whoever can name himself anew at will is no more than one
group, whatever he calls himself. What a turn costs does not depend on how many wait.
The line knows who is next, and who goes on with a conversation that a certain agent has read; who gets which agent, and
when, is `matching`'s to say.
"""

from __future__ import annotations

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
"""Seconds after which one may try again where nothing is known of the line's pace."""

LONGEST_RETRY = 600

WEIGHT = 0.1
"""Of the newest interval between two turns in their average."""


type FairnessKey = tuple[str, str]
"""Whose turns a request uses: a group's, and within it a client's."""


class QueueFullError(Exception):
    """As many requests wait as may."""


@dataclass(frozen=True, slots=True)
class QueueKey:
    """What kind of turn a request waits for."""

    model: str
    """A canonical name."""
    agent: Agent | None = None
    """The only agent that will do."""
    tried: frozenset[Agent] = frozenset()
    """Agents that have failed the request already."""


class Ticket:
    """One request in the line.

    `notify` is for whoever takes it out: called with the lease it gets, or None when no agent is left that could serve.
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
        """The agent that has read the beginning of its prompt."""
        self.overtaken = 0
        """How often another has gone before it out of its turn."""
        self.demand = demand
        self.client = client
        """As it is shown."""
        self.fairness_key = fairness_key
        self.since = since
        self.notify = notify
        self.waiting = True

    def __repr__(self) -> str:
        return f"Waiter({self.key.model}, {self.client}, since {self.since:.3f})"


type _Ordered = OrderedDict[Ticket, None]


class _Lane:
    """Those who wait at one place."""

    __slots__ = ("arrivals", "groups")

    def __init__(self) -> None:
        self.groups: OrderedDict[str, OrderedDict[str, _Ordered]] = OrderedDict()
        """By group and client: the first group has the turn, in it the first client, and of him the oldest request."""
        self.arrivals: _Ordered = OrderedDict()
        """All of them, in the order in which they came."""

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
        """Its group, and its client there, come last now."""
        group, client = ticket.fairness_key
        self.groups.move_to_end(group)
        self.groups[group].move_to_end(client)

    def in_turn(self) -> Iterator[Ticket]:
        """As they would be called; no more work is done than what is read of it takes."""
        return _alternating(_alternating(map(iter, clients.values())) for clients in self.groups.values())


def _alternating[T](iterators: Iterable[Iterator[T]]) -> Iterator[T]:
    """Of each the first, then of each the second, and so on."""
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
    """`clock` gives monotonic seconds; `size`, which may be changed, is how many may wait."""

    def __init__(self, clock: Callable[[], float], size: int = 1000) -> None:
        self.size = size
        self._clock = clock
        self._models: dict[str, dict[QueueKey, _Lane]] = {}
        self._all: _Ordered = OrderedDict()
        self._by_affinity: dict[tuple[QueueKey, Agent], _Ordered] = {}
        self._counts: Counter[str] = Counter()
        """How many wait, by model."""
        self._interval: float | None = None
        """Seconds between two turns while somebody waits: a moving average."""
        self._last: float = 0.0
        """When the last turn was called, or the line began."""

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return f"WaitingLine({len(self._all)} of {self.size}; {len(self._models)} models)"

    def join(
        self,
        key: QueueKey,
        client: str,
        notify: Callable[[Lease | None], None],
        demand: Demand | None = None,
        affinity: Agent | None = None,
        fairness_key: FairnessKey | None = None,
    ) -> Ticket:
        """Wait at that place; without a `share` the client is a group of its own.

        LineFullError: the line has its size already.
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
        """Wait no longer; False if it did not wait any more."""
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
        """Whose turn it is at that place; None if nobody waits there."""
        lane = self._models.get(key.model, {}).get(key)
        return None if lane is None else lane.first()

    def oldest_with_affinity(self, key: QueueKey, agent: Agent) -> Ticket | None:
        """Who has waited longest there of those whose conversation the agent has read."""
        found = self._by_affinity.get((key, agent))
        return None if found is None else next(iter(found))

    def drop_affinity(self, ticket: Ticket) -> None:
        """Its conversation is no longer there."""
        affinity, ticket.affinity = ticket.affinity, None
        if affinity is not None:
            key = ticket.key, affinity
            del self._by_affinity[key][ticket]
            if not self._by_affinity[key]:
                del self._by_affinity[key]

    def next_tickets(self, key: QueueKey, most: int) -> list[Ticket]:
        """Whose turns are next at that place: of each group the first, then of each the second, and so on."""
        lane = self._models.get(key.model, {}).get(key)
        return [] if lane is None else list(islice(lane.in_turn(), most))

    def call(self, key: QueueKey, ticket: Ticket | None = None) -> Ticket:
        """Take out whose turn it is at that place, or that one out of turn; its group and client have had their turn.

        KeyError: nobody waits there.
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
        """Where somebody waits for that model, or for any; where it has taken longest comes first."""
        if model is not None:
            found = list(self._models.get(model, ()))
        else:
            found = [key for keys in self._models.values() for key in keys]
        return found if len(found) < 2 else sorted(found, key=self._first_since)

    def tickets(self, key: QueueKey) -> list[Ticket]:
        """All who wait at that place, as they came."""
        lane = self._models.get(key.model, {}).get(key)
        return [] if lane is None else list(lane.arrivals)

    def count(self, model: str) -> int:
        """How many wait for that model."""
        return self._counts.get(model, 0)

    def last(self, key: QueueKey) -> Ticket:
        """Who joined that place last. KeyError: nobody waits there."""
        return next(reversed(self._models[key.model][key].arrivals))

    def retry_after(self) -> int:
        """Whole seconds until somebody who finds the line full may expect it to have passed: from 1 to 600."""
        if self._interval is None:
            return UNKNOWN_RETRY
        return round(max(1.0, min(float(LONGEST_RETRY), self._interval * len(self._all))))

    def describe(self, most: int = 100) -> dict[str, Any]:
        """The line as the control API shows it, with the `most` models and clients that have most requests in it."""
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
