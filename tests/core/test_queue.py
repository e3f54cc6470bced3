from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ollama_balancer.core.agent import Agent, Source
from ollama_balancer.core.queue import LONGEST_RETRY, UNKNOWN_RETRY, QueueFullError, RequestQueue
from ollama_balancer.core.tickets import QueueKey, Ticket
from tests.core.fakes import Clock, address

M = QueueKey("m:latest")
OTHER = QueueKey("other:latest")
NOBODY = {"interactive": 0, "normal": 0, "batch": 0}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> RequestQueue:
    return RequestQueue(clock)


def join(queue: RequestQueue, client: str, key: QueueKey = M, group: str | None = None) -> Ticket:
    return queue.join(key, client, lambda lease: None, fairness_key=None if group is None else (group, client))


def assert_empty(queue: RequestQueue) -> None:
    assert len(queue) == 0
    assert not any(queue._classes)
    assert not queue._models
    assert queue.describe() == {"length": 0, "oldest": None, "priorities": NOBODY, "models": {}, "clients": {}}


def test_a_client_with_one_request_waits_for_one_of_the_others_thousand(queue: RequestQueue) -> None:
    queue.size = 1001
    many = [join(queue, "many") for _ in range(1000)]
    one = join(queue, "one")
    called = [queue.call(M) for _ in range(1001)]
    assert called[:3] == [many[0], one, many[1]]
    assert called[2:] == many[1:]
    assert_empty(queue)


def test_clients_take_turns_and_each_is_served_first_in_first_out(queue: RequestQueue) -> None:
    tickets = {client: [join(queue, client) for _ in range(3)] for client in "abc"}
    called = [queue.call(M) for _ in range(9)]
    assert called == [tickets[client][n] for n in range(3) for client in "abc"]


def test_a_fresh_name_for_each_request_buys_no_turns(queue: RequestQueue) -> None:
    fresh = [join(queue, f"key {n}", group="10.0.0.1") for n in range(100)]
    honest = [join(queue, "key a", group="10.0.0.2") for _ in range(3)]
    called = [queue.call(M) for _ in range(6)]
    assert called == [fresh[0], honest[0], fresh[1], honest[1], fresh[2], honest[2]]
    assert queue.next_tickets(M, 3) == fresh[3:6]


def test_the_clients_of_a_group_share_its_turns_fairly(queue: RequestQueue) -> None:
    many = [join(queue, "many", group="10.0.0.1") for _ in range(4)]
    one = join(queue, "one", group="10.0.0.1")
    other = [join(queue, "other", group="10.0.0.2") for _ in range(3)]
    expected = [many[0], other[0], one, other[1], many[1], other[2], many[2], many[3]]
    assert queue.next_tickets(M, 8) == expected
    assert [queue.call(M) for _ in range(8)] == expected
    assert_empty(queue)


class CountingDict(OrderedDict[str, OrderedDict[str, OrderedDict[Ticket, None]]]):
    """Counts which of its values are looked at in turn."""

    looked_at = 0

    def values(self) -> Iterator[OrderedDict[str, OrderedDict[Ticket, None]]]:  # type: ignore[override]
        for value in super().values():
            self.looked_at += 1
            yield value


@pytest.mark.parametrize("waiting", [10, 5000])
def test_a_turn_looks_at_no_more_clients_than_it_asks_for(queue: RequestQueue, waiting: int) -> None:
    queue.size = waiting
    tickets = [join(queue, f"c{n}") for n in range(waiting)]
    (lane,) = queue._models[M.model][M]
    groups = lane.groups = CountingDict(lane.groups)
    assert queue.next_tickets(M, 8) == tickets[:8]
    assert queue.first(M) is tickets[0]
    assert queue.last(M) is tickets[-1]
    assert queue.call(M) is tickets[0]
    assert groups.looked_at <= 10


def test_who_leaves_is_out_at_once_wherever_he_stood(queue: RequestQueue) -> None:
    for leaver in range(6):
        tickets = [join(queue, "ab"[n % 2]) for n in range(6)]
        assert queue.leave(tickets[leaver])
        assert not queue.leave(tickets[leaver])
        left = [ticket for n, ticket in enumerate(tickets) if n != leaver]
        assert len(queue) == 5
        called = [queue.call(M) for _ in range(5)]
        assert sorted(called, key=left.index) == left
        assert_empty(queue)


def test_places_hold_each_other_up_in_nothing(queue: RequestQueue, clock: Clock) -> None:
    agent = Agent("a", address(1), Source.STATIC, 0)
    pinned, retried = QueueKey("m:latest", agent), QueueKey("m:latest", tried=frozenset({agent}))
    tickets = {}
    for key in (OTHER, retried, M, pinned):
        clock.now += 1
        tickets[key] = join(queue, "c", key)
    assert queue.active_keys() == [OTHER, retried, M, pinned]
    assert queue.active_keys("m:latest") == [retried, M, pinned]
    assert queue.active_keys("unknown:latest") == []
    assert {key: queue.first(key) for key in queue.active_keys()} == tickets
    assert queue.tickets(pinned) == [tickets[pinned]]
    assert queue.call(M) is tickets[M]
    assert queue.first(M) is None
    assert queue.tickets(M) == []
    with pytest.raises(KeyError):
        queue.call(M)


def test_a_full_line_takes_nobody_until_somebody_leaves(queue: RequestQueue) -> None:
    queue.size = 2
    first = join(queue, "a")
    join(queue, "b", OTHER)
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        join(queue, "c")
    queue.leave(first)
    join(queue, "c")
    queue.size = 0
    with pytest.raises(QueueFullError):
        join(queue, "d")


def test_the_line_is_described(queue: RequestQueue, clock: Clock) -> None:
    join(queue, "a")
    clock.now += 2.5
    join(queue, "b", OTHER)
    join(queue, "b", OTHER)
    assert queue.describe() == {
        "length": 3,
        "oldest": 2.5,
        "priorities": {"interactive": 0, "normal": 3, "batch": 0},
        "models": {"other:latest": 2, "m:latest": 1},
        "clients": {"b": 2, "a": 1},
    }
    assert queue.describe(most=1)["clients"] == {"b": 2}


def test_when_to_try_again_is_estimated_from_the_pace_and_the_length(queue: RequestQueue, clock: Clock) -> None:
    assert queue.retry_after() == UNKNOWN_RETRY
    for _ in range(60):
        join(queue, "a")
    for _ in range(40):
        clock.now += 0.5
        queue.call(M)
    assert queue.retry_after() == 10
    for _ in range(20):
        clock.now += 0.5
        queue.call(M)
    clock.now += 3600
    join(queue, "a")
    clock.now += 0.5
    queue.call(M)
    for _ in range(20):
        join(queue, "a")
    assert queue.retry_after() == 10, "an hour in which nobody waited says nothing"


def test_the_estimate_stays_within_bounds(queue: RequestQueue, clock: Clock) -> None:
    for pause, expected in ((0.0, 1), (1e6, LONGEST_RETRY)):
        for _ in range(100):
            join(queue, "a")
        for _ in range(50):
            clock.now += pause
            queue.call(M)
        assert queue.retry_after() == expected


class AgainstAList(RuleBasedStateMachine):
    """The line does as a list does in which one looks for the next by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue = RequestQueue(self.clock, size=12)
        self.list: list[Ticket] = []
        self.turns: dict[QueueKey, dict[str, list[str]]] = {}
        """By place the groups in turn, and of each its clients in turn."""
        self.numbers = count()
        self.agents = [Agent(name, address(1), Source.STATIC, 0) for name in "xy"]
        self.homes: dict[Ticket, Agent] = {}

    def _note(self, ticket: Ticket) -> None:
        self.list.append(ticket)
        group, client = ticket.fairness_key
        clients = self.turns.setdefault(ticket.key, {}).setdefault(group, [])
        if client not in clients:
            clients.append(client)

    def _had_turn(self, ticket: Ticket) -> None:
        group, client = ticket.fairness_key
        groups = self.turns[ticket.key]
        clients = groups[group] = groups.pop(group)
        clients.append(clients.pop(clients.index(client)))

    @rule(
        key=st.sampled_from([M, OTHER]),
        client=st.sampled_from("abc"),
        group=st.sampled_from(["g", "h"]),
        seconds=st.floats(0, 10),
    )
    def join(self, key: QueueKey, client: str, group: str, seconds: float) -> None:
        self.clock.now += seconds
        if len(self.list) >= 12:
            with pytest.raises(QueueFullError):
                join(self.queue, client, key)
            return
        self._note(join(self.queue, client, key, group))

    @precondition(lambda self: len(self.list) < 12)
    @rule(key=st.sampled_from([M, OTHER]), client=st.sampled_from("abc"), number=st.integers(0, 1))
    def join_with_a_home(self, key: QueueKey, client: str, number: int) -> None:
        agent = self.agents[number]
        ticket = self.queue.join(key, client, lambda lease: None, affinity=agent)
        self._note(ticket)
        self.homes[ticket] = agent

    @precondition(lambda self: self.homes)
    @rule(data=st.data())
    def drop_affinity(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(list(self.homes)))
        self.queue.drop_affinity(ticket)
        self.queue.drop_affinity(ticket)
        self.homes.pop(ticket)

    @precondition(lambda self: self.list)
    @rule(data=st.data())
    def call_out_of_turn(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.list))
        assert self.queue.call(ticket.key, ticket) is ticket
        assert not ticket.waiting
        self._had_turn(ticket)
        self._out(ticket)

    @precondition(lambda self: self.list)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.list))
        assert self.queue.leave(ticket)
        self._out(ticket)

    @precondition(lambda self: self.list)
    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([ticket.key for ticket in self.list]))
        group, clients = next(iter(self.turns[key].items()))
        expected = next(w for w in self.list if w.key == key and w.fairness_key == (group, clients[0]))
        assert self.queue.next_tickets(key, 1) == [expected]
        assert self.queue.first(key) is expected
        assert self.queue.call(key) is expected
        assert not expected.waiting
        self._had_turn(expected)
        self._out(expected)

    def _out(self, ticket: Ticket) -> None:
        self.list.remove(ticket)
        self.homes.pop(ticket, None)
        if not any(w.key == ticket.key and w.fairness_key == ticket.fairness_key for w in self.list):
            group, client = ticket.fairness_key
            groups = self.turns[ticket.key]
            groups[group].remove(client)
            if not groups[group]:
                del groups[group]

    @invariant()
    def they_agree(self) -> None:
        assert len(self.queue) == len(self.list)
        shown = self.queue.describe()
        assert shown["models"] == Counter(w.key.model for w in self.list)
        assert shown["clients"] == Counter(w.client for w in self.list)
        assert {w for key in self.queue.active_keys() for w in self.queue.tickets(key)} == set(self.list)
        for key in (M, OTHER):
            there = [w for w in self.list if w.key == key]
            assert self.queue.tickets(key) == there
            if there:
                assert self.queue.last(key) is there[-1]
                assert set(self.queue.next_tickets(key, 12)) == set(there)
            for agent in self.agents:
                there = [w for w in self.list if w.key == key and self.homes.get(w) is agent]
                assert self.queue.oldest_with_affinity(key, agent) is (there[0] if there else None)
        assert 1 <= self.queue.retry_after() <= LONGEST_RETRY
        if not self.list:
            assert_empty(self.queue)


AgainstAList.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
test_the_line_is_as_a_list = AgainstAList.TestCase
