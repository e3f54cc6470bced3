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
"""Seconds after which one may try again where nothing is known of the line's pace: a guess."""

LONGEST_RETRY = 600
"""Seconds: twice as long as a request may wait by default."""

WEIGHT = 0.1
"""Of the newest interval between two turns in their average."""


type Share = tuple[str, str]
"""Whose turns a request uses: a group's, and within it a client's."""


class LineFullError(Exception):
    """As many requests wait as may."""


@dataclass(frozen=True, slots=True)
class Place:
    """What kind of turn a request waits for."""

    model: str
    """A canonical name."""
    agent: Agent | None = None
    """The only agent that will do."""
    tried: frozenset[Agent] = frozenset()
    """Agents that have failed the request already."""


class Waiter:
    """One request in the line.

    `notify` is for whoever takes it out: called with the lease it gets, or None when no agent is left that could serve.
    """

    __slots__ = ("client", "demand", "home", "notify", "overtaken", "place", "share", "since", "waiting")

    def __init__(
        self,
        place: Place,
        demand: Demand,
        client: str,
        share: Share,
        since: float,
        notify: Callable[[Lease | None], None],
        home: Agent | None,
    ) -> None:
        self.place = place
        self.home = home
        """The agent that has read the beginning of its prompt."""
        self.overtaken = 0
        """How often another has gone before it out of its turn."""
        self.demand = demand
        self.client = client
        """As it is shown."""
        self.share = share
        self.since = since
        self.notify = notify
        self.waiting = True

    def __repr__(self) -> str:
        return f"Waiter({self.place.model}, {self.client}, since {self.since:.3f})"


type _Ordered = OrderedDict[Waiter, None]


class _Queue:
    """Those who wait at one place."""

    __slots__ = ("groups", "joined")

    def __init__(self) -> None:
        self.groups: OrderedDict[str, OrderedDict[str, _Ordered]] = OrderedDict()
        """By group and client: the first group has the turn, in it the first client, and of him the oldest request."""
        self.joined: _Ordered = OrderedDict()
        """All of them, in the order in which they came."""

    def add(self, waiter: Waiter) -> None:
        group, client = waiter.share
        clients = self.groups.get(group)
        if clients is None:
            clients = self.groups[group] = OrderedDict()
        mine = clients.get(client)
        if mine is None:
            mine = clients[client] = OrderedDict()
        mine[waiter] = self.joined[waiter] = None

    def remove(self, waiter: Waiter) -> None:
        group, client = waiter.share
        del self.joined[waiter]
        clients = self.groups[group]
        mine = clients[client]
        del mine[waiter]
        if not mine:
            del clients[client]
            if not clients:
                del self.groups[group]

    def first(self) -> Waiter:
        return next(iter(next(iter(next(iter(self.groups.values())).values()))))

    def had_turn(self, waiter: Waiter) -> None:
        """Its group, and its client there, come last now."""
        group, client = waiter.share
        self.groups.move_to_end(group)
        self.groups[group].move_to_end(client)

    def in_turn(self) -> Iterator[Waiter]:
        """As they would be called; no more work is done than what is read of it takes."""
        return _alternating(_alternating(map(iter, clients.values())) for clients in self.groups.values())


def _alternating[T](queues: Iterable[Iterator[T]]) -> Iterator[T]:
    """Of each the first, then of each the second, and so on."""
    begun = []
    for queue in queues:
        yield from islice(queue, 1)
        begun.append(queue)
    while begun:
        left = []
        for queue in begun:
            for each in islice(queue, 1):
                yield each
                left.append(queue)
        begun = left


class WaitingLine:
    """`clock` gives monotonic seconds; `size`, which may be changed, is how many may wait."""

    def __init__(self, clock: Callable[[], float], size: int = 1000) -> None:
        self.size = size
        self._clock = clock
        self._models: dict[str, dict[Place, _Queue]] = {}
        self._all: _Ordered = OrderedDict()
        self._homes: dict[tuple[Place, Agent], _Ordered] = {}
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
        place: Place,
        client: str,
        notify: Callable[[Lease | None], None],
        demand: Demand | None = None,
        home: Agent | None = None,
        share: Share | None = None,
    ) -> Waiter:
        """Wait at that place; without a `share` the client is a group of its own.

        LineFullError: the line has its size already.
        """
        if len(self._all) >= self.size:
            raise LineFullError(f"{len(self._all)} requests wait already")
        now = self._clock()
        if not self._all:
            self._last = now
        waiter = Waiter(place, demand or Demand(place.model), client, share or (client, ""), now, notify, home)
        places = self._models.setdefault(place.model, {})
        queue = places.get(place)
        if queue is None:
            queue = places[place] = _Queue()
        queue.add(waiter)
        self._all[waiter] = None
        if home is not None:
            self._homes.setdefault((place, home), OrderedDict())[waiter] = None
        self._counts[place.model] += 1
        return waiter

    def leave(self, waiter: Waiter) -> bool:
        """Wait no longer; False if it did not wait any more."""
        if not waiter.waiting:
            return False
        waiter.waiting = False
        del self._all[waiter]
        self.forget_home(waiter)
        self._counts[waiter.place.model] -= 1
        if not self._counts[waiter.place.model]:
            del self._counts[waiter.place.model]
        places = self._models[waiter.place.model]
        queue = places[waiter.place]
        queue.remove(waiter)
        if not queue.joined:
            del places[waiter.place]
            if not places:
                del self._models[waiter.place.model]
        return True

    def first(self, place: Place) -> Waiter | None:
        """Whose turn it is at that place; None if nobody waits there."""
        queue = self._models.get(place.model, {}).get(place)
        return None if queue is None else queue.first()

    def at_home(self, place: Place, agent: Agent) -> Waiter | None:
        """Who has waited longest there of those whose conversation the agent has read."""
        found = self._homes.get((place, agent))
        return None if found is None else next(iter(found))

    def forget_home(self, waiter: Waiter) -> None:
        """Its conversation is no longer there."""
        home, waiter.home = waiter.home, None
        if home is not None:
            key = waiter.place, home
            del self._homes[key][waiter]
            if not self._homes[key]:
                del self._homes[key]

    def heads(self, place: Place, most: int) -> list[Waiter]:
        """Whose turns are next at that place: of each group the first, then of each the second, and so on."""
        queue = self._models.get(place.model, {}).get(place)
        return [] if queue is None else list(islice(queue.in_turn(), most))

    def call(self, place: Place, waiter: Waiter | None = None) -> Waiter:
        """Take out whose turn it is at that place, or that one out of turn; its group and client have had their turn.

        KeyError: nobody waits there.
        """
        queue = self._models[place.model][place]
        if waiter is None:
            waiter = queue.first()
        queue.had_turn(waiter)
        self.leave(waiter)
        now = self._clock()
        interval, self._last = now - self._last, now
        self._interval = interval if self._interval is None else self._interval + WEIGHT * (interval - self._interval)
        return waiter

    def places(self, model: str | None = None) -> list[Place]:
        """Where somebody waits for that model, or for any; where it has taken longest comes first."""
        if model is not None:
            found = list(self._models.get(model, ()))
        else:
            found = [place for places in self._models.values() for place in places]
        return found if len(found) < 2 else sorted(found, key=self._first_since)

    def waiters(self, place: Place) -> list[Waiter]:
        """All who wait at that place, as they came."""
        queue = self._models.get(place.model, {}).get(place)
        return [] if queue is None else list(queue.joined)

    def count(self, model: str) -> int:
        """How many wait for that model."""
        return self._counts.get(model, 0)

    def last(self, place: Place) -> Waiter:
        """Who joined that place last. KeyError: nobody waits there."""
        return next(reversed(self._models[place.model][place].joined))

    def retry_after(self) -> int:
        """Whole seconds until somebody who finds the line full may expect it to have passed: from 1 to 600."""
        if self._interval is None:
            return UNKNOWN_RETRY
        return round(max(1.0, min(float(LONGEST_RETRY), self._interval * len(self._all))))

    def describe(self, most: int = 100) -> dict[str, Any]:
        """The line as the control API shows it, with the `most` models and clients that have most requests in it."""
        clients = Counter(waiter.client for waiter in self._all)
        oldest = next(iter(self._all), None)
        return {
            "length": len(self._all),
            "oldest": None if oldest is None else round(self._clock() - oldest.since, 3),
            "models": _largest(self._counts, most),
            "clients": _largest(clients, most),
        }

    def _first_since(self, place: Place) -> float:
        first = self.first(place)
        return first.since if first is not None else 0.0


def _largest(counts: Counter[str], most: int) -> dict[str, int]:
    return dict(nsmallest(most, counts.items(), key=lambda item: (-item[1], item[0])))
