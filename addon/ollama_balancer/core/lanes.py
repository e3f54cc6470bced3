"""The tickets that wait with one queue key: a lane for each priority, and which of them has its turn."""

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice

from .priority import Priority
from .tickets import QueueKey, Ticket

type Ordered = OrderedDict[Ticket, None]


class Lane:
    """The tickets with one queue key and one priority."""

    __slots__ = ("arrivals", "groups", "priority")

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self.groups: OrderedDict[str, OrderedDict[str, Ordered]] = OrderedDict()
        """By group and client: the next turn is the first group's, its first client's, that client's oldest ticket."""
        self.arrivals: Ordered = OrderedDict()
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

    def oldest(self) -> Ticket:
        return next(iter(self.arrivals))

    def first(self) -> Ticket:
        """The ticket whose turn is next."""
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


def next_lane(lanes: Sequence[Lane]) -> Lane:
    """Of the lanes of one queue key, highest class first, the one that has its turn.

    The highest class whose next ticket is due before all tickets of the lower classes.
    """
    chosen = lanes[-1]
    if len(lanes) > 1:
        earliest = chosen.oldest().due
        for lane in lanes[-2::-1]:
            if lane.first().due <= earliest:
                chosen = lane
            earliest = min(earliest, lane.oldest().due)
    return chosen


type Turn = tuple[Lane, QueueKey]


def by_class(turns: Iterable[Turn]) -> Iterator[Turn]:
    """Turns in the order of their next tickets' due times, reordered so that the rule of `next_lane` holds for all."""
    classes: list[list[Turn]] = [[] for _ in Priority]
    for turn in turns:
        classes[turn[0].priority].append(turn)
    left = []
    for own in reversed(classes):
        own.reverse()  # the next one is popped; beside each the earliest ticket of those that then are left
        left.append((own, list(accumulate((lane.oldest().due for lane, _ in own), min))))
    while any(own for own, _ in left):
        earliest = math.inf
        for own, due in left:
            if own:
                if own[-1][0].first().due <= earliest:
                    chosen = own, due
                earliest = min(earliest, due[-1])
        chosen[1].pop()
        yield chosen[0].pop()


def find(lanes: Sequence[Lane], priority: Priority) -> Lane | None:
    for lane in lanes:
        if lane.priority is priority:
            return lane
    return None


def lane_of(lanes: Sequence[Lane], priority: Priority) -> Lane:
    """KeyError: nobody of that class waits."""
    lane = find(lanes, priority)
    if lane is None:
        raise KeyError(priority)
    return lane
