from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ollama_balancer.core.agent import Agent, Source
from ollama_balancer.core.queue import LONGEST_RETRY, UNKNOWN_RETRY, LineFullError, Place, Waiter, WaitingLine
from tests.core.fakes import Clock, address
from tests.examples import examples

M = Place("m:latest")
OTHER = Place("other:latest")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def line(clock: Clock) -> WaitingLine:
    return WaitingLine(clock)


def join(line: WaitingLine, client: str, place: Place = M, group: str | None = None) -> Waiter:
    return line.join(place, client, lambda lease: None, share=None if group is None else (group, client))


def assert_empty(line: WaitingLine) -> None:
    assert len(line) == 0
    assert not line._all
    assert not line._models
    assert line.describe() == {"length": 0, "oldest": None, "models": {}, "clients": {}}


def test_a_client_with_one_request_waits_for_one_of_the_others_thousand(line: WaitingLine) -> None:
    line.size = 1001
    many = [join(line, "many") for _ in range(1000)]
    one = join(line, "one")
    called = [line.call(M) for _ in range(1001)]
    assert called[:3] == [many[0], one, many[1]]
    assert called[2:] == many[1:]
    assert_empty(line)


def test_clients_take_turns_and_each_is_served_first_in_first_out(line: WaitingLine) -> None:
    waiters = {client: [join(line, client) for _ in range(3)] for client in "abc"}
    called = [line.call(M) for _ in range(9)]
    assert called == [waiters[client][n] for n in range(3) for client in "abc"]


def test_a_fresh_name_for_each_request_buys_no_turns(line: WaitingLine) -> None:
    fresh = [join(line, f"key {n}", group="10.0.0.1") for n in range(100)]
    honest = [join(line, "key a", group="10.0.0.2") for _ in range(3)]
    called = [line.call(M) for _ in range(6)]
    assert called == [fresh[0], honest[0], fresh[1], honest[1], fresh[2], honest[2]]
    assert line.heads(M, 3) == fresh[3:6]


def test_the_clients_of_a_group_share_its_turns_fairly(line: WaitingLine) -> None:
    many = [join(line, "many", group="10.0.0.1") for _ in range(4)]
    one = join(line, "one", group="10.0.0.1")
    other = [join(line, "other", group="10.0.0.2") for _ in range(3)]
    expected = [many[0], other[0], one, other[1], many[1], other[2], many[2], many[3]]
    assert line.heads(M, 8) == expected
    assert [line.call(M) for _ in range(8)] == expected
    assert_empty(line)


class CountingDict(OrderedDict[str, OrderedDict[str, OrderedDict[Waiter, None]]]):
    """Counts which of its values are looked at in turn."""

    looked_at = 0

    def values(self) -> Iterator[OrderedDict[str, OrderedDict[Waiter, None]]]:  # type: ignore[override]
        for value in super().values():
            self.looked_at += 1
            yield value


@pytest.mark.parametrize("waiting", [10, 5000])
def test_a_turn_looks_at_no_more_clients_than_it_asks_for(line: WaitingLine, waiting: int) -> None:
    line.size = waiting
    waiters = [join(line, f"c{n}") for n in range(waiting)]
    queue = line._models[M.model][M]
    groups = queue.groups = CountingDict(queue.groups)
    assert line.heads(M, 8) == waiters[:8]
    assert line.first(M) is waiters[0]
    assert line.last(M) is waiters[-1]
    assert line.call(M) is waiters[0]
    assert groups.looked_at <= 10


def test_who_leaves_is_out_at_once_wherever_he_stood(line: WaitingLine) -> None:
    for leaver in range(6):
        waiters = [join(line, "ab"[n % 2]) for n in range(6)]
        assert line.leave(waiters[leaver])
        assert not line.leave(waiters[leaver])
        left = [waiter for n, waiter in enumerate(waiters) if n != leaver]
        assert len(line) == 5
        called = [line.call(M) for _ in range(5)]
        assert sorted(called, key=left.index) == left
        assert_empty(line)


def test_places_hold_each_other_up_in_nothing(line: WaitingLine, clock: Clock) -> None:
    agent = Agent("a", address(1), Source.STATIC, 0)
    pinned, retried = Place("m:latest", agent), Place("m:latest", tried=frozenset({agent}))
    waiters = {}
    for place in (OTHER, retried, M, pinned):
        clock.now += 1
        waiters[place] = join(line, "c", place)
    assert line.places() == [OTHER, retried, M, pinned]
    assert line.places("m:latest") == [retried, M, pinned]
    assert line.places("unknown:latest") == []
    assert {place: line.first(place) for place in line.places()} == waiters
    assert line.waiters(pinned) == [waiters[pinned]]
    assert line.call(M) is waiters[M]
    assert line.first(M) is None
    assert line.waiters(M) == []
    with pytest.raises(KeyError):
        line.call(M)


def test_a_full_line_takes_nobody_until_somebody_leaves(line: WaitingLine) -> None:
    line.size = 2
    first = join(line, "a")
    join(line, "b", OTHER)
    with pytest.raises(LineFullError, match="2 requests wait already"):
        join(line, "c")
    line.leave(first)
    join(line, "c")
    line.size = 0
    with pytest.raises(LineFullError):
        join(line, "d")


def test_the_line_is_described(line: WaitingLine, clock: Clock) -> None:
    join(line, "a")
    clock.now += 2.5
    join(line, "b", OTHER)
    join(line, "b", OTHER)
    assert line.describe() == {
        "length": 3,
        "oldest": 2.5,
        "models": {"other:latest": 2, "m:latest": 1},
        "clients": {"b": 2, "a": 1},
    }
    assert line.describe(most=1)["clients"] == {"b": 2}


def test_when_to_try_again_is_estimated_from_the_pace_and_the_length(line: WaitingLine, clock: Clock) -> None:
    assert line.retry_after() == UNKNOWN_RETRY
    for _ in range(60):
        join(line, "a")
    for _ in range(40):
        clock.now += 0.5
        line.call(M)
    assert line.retry_after() == 10
    for _ in range(20):
        clock.now += 0.5
        line.call(M)
    clock.now += 3600
    join(line, "a")
    clock.now += 0.5
    line.call(M)
    for _ in range(20):
        join(line, "a")
    assert line.retry_after() == 10, "an hour in which nobody waited says nothing"


def test_the_estimate_stays_within_bounds(line: WaitingLine, clock: Clock) -> None:
    for pause, expected in ((0.0, 1), (1e6, LONGEST_RETRY)):
        for _ in range(100):
            join(line, "a")
        for _ in range(50):
            clock.now += pause
            line.call(M)
        assert line.retry_after() == expected


class AgainstAList(RuleBasedStateMachine):
    """The line does as a list does in which one looks for the next by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.line = WaitingLine(self.clock, size=12)
        self.list: list[Waiter] = []
        self.turns: dict[Place, dict[str, list[str]]] = {}
        """By place the groups in turn, and of each its clients in turn."""
        self.numbers = count()
        self.agents = [Agent(name, address(1), Source.STATIC, 0) for name in "xy"]
        self.homes: dict[Waiter, Agent] = {}

    def _note(self, waiter: Waiter) -> None:
        self.list.append(waiter)
        group, client = waiter.share
        clients = self.turns.setdefault(waiter.place, {}).setdefault(group, [])
        if client not in clients:
            clients.append(client)

    def _had_turn(self, waiter: Waiter) -> None:
        group, client = waiter.share
        groups = self.turns[waiter.place]
        clients = groups[group] = groups.pop(group)
        clients.append(clients.pop(clients.index(client)))

    @rule(
        place=st.sampled_from([M, OTHER]),
        client=st.sampled_from("abc"),
        group=st.sampled_from(["g", "h"]),
        seconds=st.floats(0, 10),
    )
    def join(self, place: Place, client: str, group: str, seconds: float) -> None:
        self.clock.now += seconds
        if len(self.list) >= 12:
            with pytest.raises(LineFullError):
                join(self.line, client, place)
            return
        self._note(join(self.line, client, place, group))

    @precondition(lambda self: len(self.list) < 12)
    @rule(place=st.sampled_from([M, OTHER]), client=st.sampled_from("abc"), number=st.integers(0, 1))
    def join_with_a_home(self, place: Place, client: str, number: int) -> None:
        agent = self.agents[number]
        waiter = self.line.join(place, client, lambda lease: None, home=agent)
        self._note(waiter)
        self.homes[waiter] = agent

    @precondition(lambda self: self.homes)
    @rule(data=st.data())
    def forget_home(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(list(self.homes)))
        self.line.forget_home(waiter)
        self.line.forget_home(waiter)
        self.homes.pop(waiter)

    @precondition(lambda self: self.list)
    @rule(data=st.data())
    def call_out_of_turn(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.list))
        assert self.line.call(waiter.place, waiter) is waiter
        assert not waiter.waiting
        self._had_turn(waiter)
        self._out(waiter)

    @precondition(lambda self: self.list)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.list))
        assert self.line.leave(waiter)
        self._out(waiter)

    @precondition(lambda self: self.list)
    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from([waiter.place for waiter in self.list]))
        group, clients = next(iter(self.turns[place].items()))
        expected = next(w for w in self.list if w.place == place and w.share == (group, clients[0]))
        assert self.line.heads(place, 1) == [expected]
        assert self.line.first(place) is expected
        assert self.line.call(place) is expected
        assert not expected.waiting
        self._had_turn(expected)
        self._out(expected)

    def _out(self, waiter: Waiter) -> None:
        self.list.remove(waiter)
        self.homes.pop(waiter, None)
        if not any(w.place == waiter.place and w.share == waiter.share for w in self.list):
            group, client = waiter.share
            groups = self.turns[waiter.place]
            groups[group].remove(client)
            if not groups[group]:
                del groups[group]

    @invariant()
    def they_agree(self) -> None:
        assert len(self.line) == len(self.list)
        shown = self.line.describe()
        assert shown["models"] == Counter(w.place.model for w in self.list)
        assert shown["clients"] == Counter(w.client for w in self.list)
        assert {w for place in self.line.places() for w in self.line.waiters(place)} == set(self.list)
        for place in (M, OTHER):
            there = [w for w in self.list if w.place == place]
            assert self.line.waiters(place) == there
            if there:
                assert self.line.last(place) is there[-1]
                assert set(self.line.heads(place, 12)) == set(there)
            for agent in self.agents:
                there = [w for w in self.list if w.place == place and self.homes.get(w) is agent]
                assert self.line.at_home(place, agent) is (there[0] if there else None)
        assert 1 <= self.line.retry_after() <= LONGEST_RETRY
        if not self.list:
            assert_empty(self.line)


AgainstAList.TestCase.settings = settings(max_examples=examples(40), stateful_step_count=40, deadline=None)
test_the_line_is_as_a_list = AgainstAList.TestCase
