from __future__ import annotations

from ollama_balancer.gateway.connections import HEAD_SECONDS, Connections
from tests.core.fakes import Clock


def filled(most: int, clock: Clock | None = None) -> Connections:
    connections = Connections(clock or Clock(), most)
    for n in range(most):
        assert connections.add(f"c{n}", f"10.0.0.{n}") == (True, None)
    return connections


def assert_empty(connections: Connections) -> None:
    assert len(connections) == 0
    assert not connections._idle
    assert not connections._heads
    assert not connections._running
    assert not connections._counts


def test_at_the_limit_the_one_that_was_idle_for_longest_makes_room() -> None:
    connections = filled(4)
    connections.begun("c0")
    connections.begun("c1")
    connections.ended("c1")
    assert connections.add("new", "10.0.0.9") == (True, "c2")
    assert connections.add("newer", "10.0.0.10") == (True, "c3")
    assert connections.add("newest", "10.0.0.11") == (True, "c1"), "it has had a request since"
    assert len(connections) == 4


def test_where_all_have_requests_running_nobody_comes_in() -> None:
    connections = filled(4)
    for n in range(4):
        connections.begun(f"c{n}")
        connections.begun(f"c{n}")
        connections.ended(f"c{n}")
    assert connections.add("new", "10.0.0.9") == (False, None)
    connections.ended("new")
    connections.ended("c2")
    assert connections.add("new", "10.0.0.9") == (True, "c2")


def test_one_address_takes_three_quarters_and_leaves_the_rest_to_others() -> None:
    connections = Connections(Clock(), 8)
    for n in range(6):
        assert connections.add(f"c{n}", "10.0.0.1") == (True, None)
        connections.begun(f"c{n}")
    assert connections.add("seventh", "10.0.0.1") == (False, None)
    assert connections.add("another", "10.0.0.2") == (True, None)
    connections.ended("c3")
    assert connections.add("seventh", "10.0.0.1") == (True, "c3"), "its own idle one goes, nobody else's"


def test_a_head_has_a_deadline_and_an_idle_connection_has_none() -> None:
    clock = Clock()
    connections = filled(3, clock)
    connections.begun("c1")
    connections.ended("c1")
    clock.now += HEAD_SECONDS - 1
    connections.head_begun("c1")
    connections.head_begun("c1")
    assert connections.overdue() == []
    clock.now += 1
    assert connections.overdue() == ["c0", "c2"]
    connections.discard("c0")
    connections.discard("c2")
    clock.now += HEAD_SECONDS - 1
    assert connections.overdue() == ["c1"]
    connections.begun("c1")
    assert connections.overdue() == []


def test_nothing_is_kept_of_those_that_are_gone() -> None:
    connections = filled(3)
    connections.begun("c0")
    for client in ("c0", "c1", "c2", "c2", "never there"):
        connections.discard(client)
        connections.begun(client)
        connections.ended(client)
        connections.head_begun(client)
    assert_empty(connections)
