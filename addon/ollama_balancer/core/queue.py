"""The queue of requests that wait for an agent: by priority, fair between clients, FIFO within each client.

Requests that the same agents could serve share a queue key. Under each key the clients take turns, so a client that
sends a thousand requests does not keep the others waiting, and a key whose agents are busy blocks no other key. Turns
go round robin over groups, then over the clients of a group: a client that can change its name at will gets no more
than its group's turns. The cost of a turn does not depend on the length of the queue.

Interactive requests are served before normal ones, and these before batches. Requests age: each class has a handicap in
seconds, and a ticket is due that long after its arrival. While a ticket waits, no ticket of a higher class that is due
later has its turn under the same key: however many interactive requests arrive, none that comes more than 120 s after a
batch request is served before it. Between keys the next tickets of each are compared, which is the same but where the
turns of clients have put an older ticket behind. (Who is in turn may decline the free agents, as it does better to
wait for a busy one. Then a higher class may take them, and no lower one.) The clients of each class have turns of their
own.

The queue knows the order, and which tickets have their prefix cached on which agent. The scheduler decides which agent
a ticket gets, and when.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from heapq import nsmallest
from itertools import islice
from typing import Any

from .agent import Agent
from .demand import Demand
from .lanes import Lane, Ordered, Turn, by_class, find, lane_of, next_lane
from .leases import Lease
from .priority import Priority
from .tickets import FairnessKey, QueueKey, Ticket

UNKNOWN_RETRY = 5
"""Seconds for Retry-After while the pace of the queue is unknown: a guess."""

LONGEST_RETRY = 600
"""Seconds: twice as long as a request may wait by default."""

WEIGHT = 0.1
"""The weight of the newest interval between two turns in the moving average."""


class QueueFullError(Exception):
    """The queue has reached its size, and nobody of a lower class waits."""


class RequestQueue:
    """`clock` gives monotonic seconds; `size`, which may be changed, is the most tickets it holds."""

    def __init__(self, clock: Callable[[], float], size: int = 1000) -> None:
        self.size = size
        self._clock = clock
        self._models: dict[str, dict[QueueKey, list[Lane]]] = {}
        """By model and key: a lane for each class that waits, the highest first."""
        self._classes: tuple[Ordered, ...] = tuple(OrderedDict() for _ in Priority)
        """All tickets by class, in order of arrival."""
        self._by_affinity: dict[tuple[QueueKey, Agent, Priority], Ordered] = {}
        self._counts: Counter[str] = Counter()
        """Tickets by model."""
        self._interval: float | None = None
        """Seconds between two turns while the queue is not empty: a moving average."""
        self._last: float = 0.0
        """When the last ticket was called, or the queue was last empty."""

    def __len__(self) -> int:
        interactive, normal, batch = self._classes
        return len(interactive) + len(normal) + len(batch)

    def __repr__(self) -> str:
        return f"RequestQueue({len(self)} of {self.size}; {len(self._models)} models)"

    def join(
        self,
        key: QueueKey,
        client: str,
        notify: Callable[[Lease | None], None],
        demand: Demand | None = None,
        affinity: Agent | None = None,
        fairness_key: FairnessKey | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Ticket:
        """Add a request; without a `fairness_key` the client is a group of its own.

        If the queue has reached its size, the newest ticket of the lowest class below this one is shed: it leaves and
        is notified. QueueFullError: there is none.
        """
        now, length, shed = self._clock(), len(self), None
        if length >= self.size:
            shed = next((next(reversed(each)) for each in self._classes[:priority:-1] if each), None)
            if shed is None:
                raise QueueFullError(f"{length} requests wait already")
            shed.shed = True
            self.leave(shed)
        if not length:
            self._last = now
        fairness_key = fairness_key or (client, "")
        ticket = Ticket(key, demand or Demand(key.model), client, fairness_key, now, notify, affinity, priority)
        self._add(ticket)
        if shed is not None:
            shed.notify(None)
        return ticket

    def _add(self, ticket: Ticket) -> None:
        key, priority = ticket.key, ticket.priority
        lanes = self._models.setdefault(key.model, {}).setdefault(key, [])
        lane = find(lanes, priority)
        if lane is None:
            lane = Lane(priority)
            lanes.append(lane)
            lanes.sort(key=lambda lane: lane.priority)
        lane.add(ticket)
        self._classes[priority][ticket] = None
        if ticket.affinity is not None:
            self._by_affinity.setdefault((key, ticket.affinity, priority), OrderedDict())[ticket] = None
        self._counts[key.model] += 1

    def leave(self, ticket: Ticket) -> bool:
        """Remove the ticket; False if it had left before."""
        if not ticket.waiting:
            return False
        ticket.waiting = False
        del self._classes[ticket.priority][ticket]
        self.drop_affinity(ticket)
        self._counts[ticket.key.model] -= 1
        if not self._counts[ticket.key.model]:
            del self._counts[ticket.key.model]
        keys = self._models[ticket.key.model]
        lanes = keys[ticket.key]
        lane = lanes[0] if len(lanes) == 1 else lane_of(lanes, ticket.priority)
        lane.remove(ticket)
        if not lane.arrivals:
            lanes.remove(lane)
            if not lanes:
                del keys[ticket.key]
                if not keys:
                    del self._models[ticket.key.model]
        return True

    def _lanes(self, key: QueueKey) -> Sequence[Lane]:
        return self._models.get(key.model, {}).get(key, ())

    def first(self, key: QueueKey) -> Ticket | None:
        """The ticket whose turn is next; None if there is none."""
        lanes = self._lanes(key)
        return next_lane(lanes).first() if lanes else None

    def oldest_with_affinity(self, key: QueueKey, agent: Agent, priority: Priority = Priority.NORMAL) -> Ticket | None:
        """The oldest ticket of the class that has its prefix cached on the agent."""
        found = self._by_affinity.get((key, agent, priority))
        return None if found is None else next(iter(found))

    def may_go_early(self, ticket: Ticket) -> bool:
        """Whether it may be served before the others of its class, because it overtakes nobody of another class."""
        if self._lanes(ticket.key)[0].priority is not ticket.priority:
            return False
        return all(ticket.due <= next(iter(each)).due for each in self._classes[ticket.priority + 1 :] if each)

    def is_behind(self, key: QueueKey, priority: Priority) -> bool:
        """Whether a request of that class that arrives now comes after one of a higher class with that key."""
        lanes = self._lanes(key)
        return bool(lanes) and lanes[0].priority < priority

    def drop_affinity(self, ticket: Ticket) -> None:
        """The agent has evicted the ticket's prefix."""
        affinity, ticket.affinity = ticket.affinity, None
        if affinity is not None:
            key = ticket.key, affinity, ticket.priority
            del self._by_affinity[key][ticket]
            if not self._by_affinity[key]:
                del self._by_affinity[key]

    def next_tickets(self, key: QueueKey, most: int) -> list[Ticket]:
        """The tickets whose turns are next: the first of each group, then the second of each, and so on.

        After those of the class in turn come those of higher classes, and none of lower ones.
        """
        lanes = self._lanes(key)
        if not lanes:
            return []
        chosen = next_lane(lanes)
        found = list(islice(chosen.in_turn(), most))
        for lane in lanes[: lanes.index(chosen)]:
            found += islice(lane.in_turn(), most - len(found))
        return found

    def call(self, key: QueueKey, ticket: Ticket | None = None) -> Ticket:
        """Remove the next ticket, or the given one out of turn; the turn of its group and client is used up.

        KeyError: there are no tickets with that key.
        """
        lanes = self._models[key.model][key]
        lane = next_lane(lanes) if ticket is None else lane_of(lanes, ticket.priority)
        if ticket is None:
            ticket = lane.first()
        lane.rotate(ticket)
        self.leave(ticket)
        now = self._clock()
        interval, self._last = now - self._last, now
        self._interval = interval if self._interval is None else self._interval + WEIGHT * (interval - self._interval)
        return ticket

    @property
    def is_mixed(self) -> bool:
        """Whether requests of more than one class wait."""
        return sum(map(bool, self._classes)) > 1

    def active_keys(self, model: str | None = None) -> list[QueueKey]:
        """The keys that have tickets, for one model or for all, in the order of their turns."""
        if model is not None:
            found = list(self._models.get(model, ()))
        else:
            found = [key for keys in self._models.values() for key in keys]
        return found if len(found) < 2 else self.in_order(found)

    def in_order(self, keys: Iterable[QueueKey]) -> list[QueueKey]:
        """Those of the keys that have tickets, in the order of their turns.

        The key whose next ticket is of the highest class, and in a class the one whose next ticket is oldest, comes
        first; but none before a key of a lower class with a ticket that is due earlier.
        """
        turns: Iterable[Turn] = [(next_lane(lanes), key) for key in keys if (lanes := self._lanes(key))]
        turns = sorted(turns, key=lambda turn: turn[0].first().due)
        return [key for _, key in (by_class(turns) if self.is_mixed else turns)]

    def tickets(self, key: QueueKey) -> list[Ticket]:
        """All tickets with that key, in order of arrival."""
        found = [ticket for lane in self._lanes(key) for ticket in lane.arrivals]
        return sorted(found, key=lambda ticket: ticket.since)

    def count(self, model: str) -> int:
        """The number of requests that wait for the model."""
        return self._counts.get(model, 0)

    def last(self, key: QueueKey, priority: Priority = Priority.NORMAL) -> Ticket:
        """The newest ticket of the class with that key. KeyError: there is none."""
        return next(reversed(lane_of(self._models[key.model][key], priority).arrivals))

    def retry_after(self) -> int:
        """Seconds for Retry-After, from 1 to 600: when the requests that wait now are expected to be served."""
        if self._interval is None:
            return UNKNOWN_RETRY
        return round(max(1.0, min(float(LONGEST_RETRY), self._interval * len(self))))

    def describe(self, most: int = 100) -> dict[str, Any]:
        """The queue as the control API shows it; of models and clients, the `most` with the most requests."""
        clients = Counter(ticket.client for each in self._classes for ticket in each)
        oldest = min((next(iter(each)).since for each in self._classes if each), default=None)
        return {
            "length": len(self),
            "oldest": None if oldest is None else round(self._clock() - oldest, 3),
            "priorities": {priority.label: len(self._classes[priority]) for priority in Priority},
            "models": _largest(self._counts, most),
            "clients": _largest(clients, most),
        }


def _largest(counts: Counter[str], most: int) -> dict[str, int]:
    return dict(nsmallest(most, counts.items(), key=lambda item: (-item[1], item[0])))
