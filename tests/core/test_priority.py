"""Priority classes in the queue: the order, the bound on waiting, and who makes room."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_balancer.core.agent import Agent, Source
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.priority import HANDICAPS, Priority
from ollama_balancer.core.queue import QueueFullError, RequestQueue
from ollama_balancer.core.scheduler import Scheduler
from ollama_balancer.core.tickets import QueueKey, Ticket
from tests.core.fakes import Clock, address, entries, fleet, new_registry

INTERACTIVE, NORMAL, BATCH = Priority
M = QueueKey("m:latest")
OTHER = QueueKey("other:latest")
BOUND = HANDICAPS[BATCH]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> RequestQueue:
    return RequestQueue(clock)


def join(queue: RequestQueue, priority: Priority, client: str = "c", key: QueueKey = M) -> Ticket:
    return queue.join(key, client, lambda lease: None, priority=priority)


def call_all(queue: RequestQueue, key: QueueKey = M) -> list[Ticket]:
    called = []
    while queue.first(key) is not None:
        called.append(queue.call(key))
    return called


def test_a_priority_has_a_name() -> None:
    assert [Priority.parse(priority.label) for priority in Priority] == list(Priority)
    assert Priority.parse(" Batch ") is BATCH
    for wrong in ("", "0", "urgent", "batch, batch", "x" * 1000):
        with pytest.raises(ValueError, match="accepted are interactive, normal, batch") as caught:
            Priority.parse(wrong)
        assert len(str(caught.value)) < 120


def test_interactive_comes_before_normal_and_normal_before_batch(queue: RequestQueue, clock: Clock) -> None:
    tickets = {}
    for priority in (BATCH, NORMAL, INTERACTIVE):
        clock.now += 1
        tickets[priority] = join(queue, priority)
    assert queue.describe()["priorities"] == {"interactive": 1, "normal": 1, "batch": 1}
    assert queue.next_tickets(M, 8) == [tickets[INTERACTIVE]], "no lower class is considered"
    assert call_all(queue) == [tickets[INTERACTIVE], tickets[NORMAL], tickets[BATCH]]


def test_within_a_class_clients_take_turns(queue: RequestQueue) -> None:
    batch = [join(queue, BATCH, client) for client in "aaab"]
    normal = [join(queue, NORMAL, client) for client in "aaab"]
    in_turn = [0, 3, 1, 2]
    assert call_all(queue) == [*(normal[n] for n in in_turn), *(batch[n] for n in in_turn)]


@pytest.mark.parametrize("clients", [1, 7, 10_000])
@pytest.mark.parametrize("arriving", [INTERACTIVE, NORMAL])
def test_a_batch_request_is_served_while_twice_as_many_come_as_are_served(
    queue: RequestQueue, clock: Clock, arriving: Priority, clients: int
) -> None:
    """Those before it came within the bound, be they from one client or each from its own."""
    bound = HANDICAPS[BATCH] - HANDICAPS[arriving]
    queue.size = 2000
    batch = join(queue, BATCH)
    turns = 0
    for n in range(2000):
        clock.now += 0.5
        join(queue, arriving, f"c{n % clients}")
        if n % 2:
            turns += 1
            ticket = queue.call(M)
            assert ticket is batch or not batch.waiting or ticket.since <= batch.since + bound
    assert not batch.waiting
    assert turns > bound


def test_nobody_who_comes_later_than_the_bound_is_served_before_a_batch_request(
    queue: RequestQueue, clock: Clock
) -> None:
    """Not even while its class still has older requests, between which the clients take turns."""
    queue.size = 5000
    hog = [join(queue, INTERACTIVE, "hog") for _ in range(1000)]
    batch = join(queue, BATCH)
    clock.now += BOUND
    in_time = join(queue, INTERACTIVE, "in time")
    clock.now += 0.001
    late = join(queue, INTERACTIVE, "late")
    called = call_all(queue)
    assert called[:4] == [hog[0], in_time, batch, late]


def test_served_at_the_rate_of_arrival_a_batch_request_waits_for_the_bound_and_one_turn(
    queue: RequestQueue, clock: Clock
) -> None:
    """A slot is free each second; each second an interactive request comes, each from a client of its own."""
    batch = join(queue, BATCH)
    began = clock.now
    while batch.waiting:
        clock.now += 1
        join(queue, INTERACTIVE, f"c{clock.now}")
        queue.call(M)
        assert clock.now - began <= BOUND + 1
    assert clock.now - began == BOUND + 1


def test_keys_are_served_in_the_order_of_classes_too(queue: RequestQueue, clock: Clock) -> None:
    agent = Agent("a", address(1), Source.STATIC, 0)
    pinned = QueueKey("m:latest", agent)
    join(queue, BATCH, key=M)
    clock.now += 1
    join(queue, NORMAL, key=OTHER)
    clock.now += 1
    join(queue, INTERACTIVE, key=pinned)
    assert queue.active_keys() == [pinned, OTHER, M]
    assert queue.active_keys("m:latest") == [pinned, M]
    queue.call(pinned)
    clock.now += BOUND
    join(queue, INTERACTIVE, key=pinned)
    assert queue.active_keys() == [OTHER, M, pinned]


def test_the_lowest_class_makes_room_its_newest_first(queue: RequestQueue, clock: Clock) -> None:
    queue.size = 4
    told: list[str] = []

    def wait(name: str, priority: Priority, key: QueueKey = M) -> Ticket:
        def notify(lease: Lease | None) -> None:
            assert lease is None
            assert len(queue) == 4, "who takes its place has it"
            told.append(name)

        return queue.join(key, name, notify, priority=priority)

    first = wait("batch 1", BATCH)
    wait("batch 2", BATCH, OTHER)
    wait("normal 1", NORMAL)
    wait("normal 2", NORMAL)
    with pytest.raises(QueueFullError, match="4 requests wait already"):
        wait("batch 3", BATCH)
    wait("normal 3", NORMAL)
    assert (told, first.shed) == (["batch 2"], False)
    wait("interactive 1", INTERACTIVE)
    assert (told, first.shed, first.waiting) == (["batch 2", "batch 1"], True, False)
    with pytest.raises(QueueFullError):
        wait("normal 4", NORMAL)
    for n in (2, 3, 4):
        wait(f"interactive {n}", INTERACTIVE)
    assert told[2:] == ["normal 3", "normal 2", "normal 1"]
    with pytest.raises(QueueFullError):
        wait("interactive 5", INTERACTIVE)
    assert queue.active_keys() == [M]
    assert queue.describe()["priorities"] == {"interactive": 4, "normal": 0, "batch": 0}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(Priority),
            st.sampled_from("abc"),
            st.sampled_from(
                [M, OTHER, QueueKey("m:latest", tried=frozenset({Agent("x", address(1), Source.STATIC, 0)}))]
            ),
            st.floats(0, 60),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_while_a_ticket_waits_none_of_a_higher_class_that_is_due_later_is_called(
    steps: list[tuple[Priority, str, QueueKey, float, bool]],
) -> None:
    clock = Clock()
    queue = RequestQueue(clock)
    waiting: list[Ticket] = []

    def call() -> None:
        ticket = queue.call(queue.active_keys()[0])
        waiting.remove(ticket)
        same_key = [other for other in waiting if other.key == ticket.key]
        assert all(ticket.due <= other.due for other in same_key if other.priority > ticket.priority)
        first = queue.first(ticket.key)
        if first is not None and first.priority < ticket.priority:
            lower = [other.due for other in [*same_key, ticket] if other.priority > first.priority]
            assert min(lower) < first.due, "a lower class does not go first without one that is due earlier"

    for priority, client, key, seconds, calls in steps:
        clock.now += seconds
        waiting.append(join(queue, priority, client, key))
        if calls:
            call()
    while waiting:
        keys = queue.active_keys()
        assert sorted(keys, key=hash) == sorted({ticket.key for ticket in waiting}, key=hash)
        call()
    assert not len(queue)


class Room:
    """Hosts with the models `m` and `other`, each with one slot per model."""

    def __init__(self, *names: str, mode: str = "metrics") -> None:
        self.clock = Clock()
        self.registry = new_registry(self.clock, mode=mode, slots=1, chance=lambda: 0.5)
        self.agents = fleet(self.registry, *names)
        for agent in self.agents:
            self.registry.inventory.update_models(agent, entries("m", "other"))
        self.queue = RequestQueue(self.clock)
        self.scheduler = Scheduler(self.registry, self.queue)
        self.got: list[str] = []
        self.leases: list[Lease] = []

    def fill(self) -> list[Lease]:
        leases = []
        while (agent := self.scheduler.find(Demand("m:latest")).agent) is not None:
            leases.append(self.registry.limiter.take(agent, "m:latest"))
        return leases

    def wait(self, name: str, priority: Priority, key: QueueKey = M, demand: Demand | None = None) -> None:
        self.clock.now += 0.001

        def notify(lease: Lease | None) -> None:
            assert lease is not None
            self.got.append(name)
            self.leases.append(lease)

        self.scheduler.join(key, name, notify, demand, priority=priority)


def test_several_slots_at_once_go_to_the_higher_class_of_any_key_first() -> None:
    room = Room("a")
    (a,) = room.agents
    room.fill()
    room.wait("interactive", INTERACTIVE)
    room.wait("batch", BATCH)
    room.wait("pinned", INTERACTIVE, QueueKey("m:latest", a))
    room.registry.slots = 3
    assert room.got == ["interactive", "pinned"]


def a_host_comes_that_has_to_load(room: Room) -> None:
    b, _ = room.registry.register("b", address(9))
    room.registry.inventory.update_models(b, entries("m"))
    room.registry.inventory.update_loaded(b, entries())
    room.registry.liveness.reached(b)


def test_of_those_who_wait_for_a_load_the_newest_of_the_class_in_turn_gets_it() -> None:
    room = Room("a", mode="adaptive")
    room.fill()
    for name, priority in (("i1", INTERACTIVE), ("i2", INTERACTIVE), ("b1", BATCH)):
        room.wait(name, priority)
    a_host_comes_that_has_to_load(room)
    assert room.got == ["i2"]


def test_a_load_is_no_way_past_a_batch_request_that_is_due() -> None:
    room = Room("a", mode="adaptive")
    room.fill()
    room.wait("b1", BATCH)
    room.wait("i1", INTERACTIVE)
    room.clock.now += BOUND
    room.registry.liveness.reached(room.agents[0])
    room.wait("i2", INTERACTIVE)
    a_host_comes_that_has_to_load(room)
    assert room.got == ["i1"], "i2 came later than the bound"


SAID = ((b"1", 4000),)
PLAIN, CONTINUED = Demand("m:latest"), Demand("m:latest", tokens=4100, prefixes=SAID)


@pytest.mark.parametrize(
    ("continues", "expected"), [(INTERACTIVE, "continued"), (BATCH, "plain")], ids=["same class", "lower class"]
)
def test_affinity_lets_nobody_overtake_a_higher_class(continues: Priority, expected: str) -> None:
    room, lease = talking_room()
    room.wait("plain", INTERACTIVE, demand=PLAIN)
    room.wait("batch", BATCH, demand=PLAIN)
    room.wait("continued", continues, demand=CONTINUED)
    lease.release()
    assert room.got == [expected]


def test_affinity_is_no_way_past_a_batch_request_that_is_due() -> None:
    room, lease = talking_room()
    (a,) = room.agents
    room.wait("batch", BATCH, demand=PLAIN)
    room.wait("plain", INTERACTIVE, demand=PLAIN)
    room.clock.now += BOUND
    room.registry.liveness.reached(a)
    room.wait("continued", INTERACTIVE, demand=CONTINUED)
    assert room.queue.oldest_with_affinity(M, a, INTERACTIVE) is room.queue.last(M, INTERACTIVE)
    lease.release()
    assert room.got == ["plain"], "what is continued came later than the bound"
    room.leases.pop().release()
    room.leases.pop().release()
    assert room.got == ["plain", "batch", "continued"]


def talking_room() -> tuple[Room, Lease]:
    """One host, busy with the conversation that CONTINUED continues."""
    room = Room("a", mode="adaptive")
    (a,) = room.agents
    room.registry.inventory.update_loaded(a, entries("m"))
    demand = Demand("m:latest", tokens=4000, prefixes=SAID, new_prefixes=SAID)
    lease = room.registry.limiter.take(a, "m:latest", demand)
    lease.began()
    return room, lease


def test_who_arrives_is_behind_a_higher_class_with_the_same_key(queue: RequestQueue) -> None:
    assert not queue.is_behind(M, BATCH)
    join(queue, NORMAL)
    assert [queue.is_behind(M, priority) for priority in Priority] == [False, False, True]
    assert not queue.is_behind(OTHER, BATCH)


def test_handicaps_grow_with_the_class() -> None:
    assert len(HANDICAPS) == len(Priority)
    assert HANDICAPS[0] == 0
    assert all(earlier < later for earlier, later in pairwise(HANDICAPS))
