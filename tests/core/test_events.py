"""What has happened is kept within bounds, and nobody can push out what others did."""

from __future__ import annotations

from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.events import COLLAPSED_SECONDS, MAX_EVENTS, MAX_OF_ONE, MAX_REASON, Event, EventKind, Events
from ollama_balancer.core.health import EJECTION_THRESHOLD
from tests.core.fakes import Clock, address, fleet, new_registry


def kinds(events: Events) -> list[str]:
    return [event.kind for event in events]


def test_only_the_last_thousand_are_kept_in_their_order() -> None:
    events = Events(Clock())
    for number in range(MAX_EVENTS + 10):
        events.agent_changed(f"gpu-{number}", EventKind.ONLINE, "it answers")
    assert len(events) == MAX_EVENTS
    assert [event.agent for event in events][::999] == ["gpu-10", f"gpu-{MAX_EVENTS + 9}"]
    numbers = [event.number for event in events]
    assert numbers == sorted(set(numbers))


def test_a_flapping_agent_takes_no_more_than_its_share() -> None:
    events = Events(Clock())
    events.agent_changed("good", EventKind.EJECTED, "why")
    for _ in range(MAX_EVENTS):
        events.agent_changed("bad", EventKind.OFFLINE, "x" * 1000)
    assert len(events) == MAX_OF_ONE + 1
    assert [event.agent for event in events][:2] == ["good", "bad"]
    assert {len(event.reason) for event in events} == {3, MAX_REASON}


def test_repeated_refusals_are_one_event_that_moves_to_the_end() -> None:
    clock = Clock()
    events = Events(clock)
    for _ in range(3):
        events.key_refused("the key is wrong", key=None, origin="10.0.0.7")
        clock.now += 5
    events.agent_changed("a", EventKind.DRAINED, "")
    events.key_refused("the key is wrong", key=None, origin="10.0.0.7")
    drained, refused = events
    assert (drained.kind, refused.kind) == (EventKind.DRAINED, EventKind.KEY_REFUSED)
    assert (refused.times, refused.first, refused.time) == (4, 1000.0, 1015.0)
    assert events.after(drained.number, 10) == [refused]
    clock.now += COLLAPSED_SECONDS
    events.key_refused("the key is wrong", key=None, origin="10.0.0.7")
    assert [event.times for event in events] == [1, 4, 1]


def test_strangers_of_many_addresses_push_out_nothing_but_each_other() -> None:
    events = Events(Clock())
    events.agent_changed("a", EventKind.EJECTED, "why")
    for number in range(3 * MAX_EVENTS):
        events.key_refused("wrong", key=None, origin=f"2001:db8::{number:x}")
    assert len(events) == MAX_OF_ONE + 1
    assert kinds(events)[0] == EventKind.EJECTED


def test_what_is_restored_comes_first_and_numbers_go_on() -> None:
    clock = Clock()
    before = Events(clock)
    before.add(EventKind.STARTED)
    before.key_refused("wrong", key="alice", origin="10.0.0.7")
    clock.now -= 500  # its clock was set back
    after = Events(clock)
    after.add(EventKind.STARTED)
    after.restore(reversed(list(before)))
    after.add(EventKind.MODE, "from metrics to adaptive")
    assert kinds(after) == ["started", "key refused", "started", "mode changed"]
    numbers = [event.number for event in after]
    assert numbers == sorted(set(numbers))
    assert [event.number for event in before] == numbers[:2]
    after.restore([Event(1, 0.0, EventKind.STARTED, None, None, "")] * 3)
    assert len(after) == 7


def test_pages_follow_each_other() -> None:
    events = Events(Clock())
    for number in range(5):
        events.add(EventKind.OPTION, str(number))
    assert [event.reason for event in events.last(2)] == ["3", "4"]
    first = events.after(0, 2)
    assert [event.reason for event in first] == ["0", "1"]
    assert [event.reason for event in events.after(first[-1].number, 9)] == ["2", "3", "4"]
    assert events.after(2**53, 9) == []


def test_each_change_of_an_agents_state_is_an_event() -> None:
    clock = Clock()
    registry = new_registry(clock)
    a, b = fleet(registry, "a", "b")
    events = Events(clock)
    registry.fleet.on_event = events.agent_changed

    def happened() -> list[tuple[str | None, str, str]]:
        found = [(event.agent, str(event.kind), event.reason) for event in events]
        events.__init__(clock)  # type: ignore[misc]
        return found

    registry.register("c", address(9))
    assert happened() == [("c", "registered", "registered, at 10.0.0.9:11434")]
    registry.register("c", address(8))
    assert happened()[0] == ("c", "moved", "to 10.0.0.8:11434")
    registry.drain(a)
    registry.drain(a)
    registry.resume(a)
    assert [kind for _, kind, _ in happened()] == ["drained", "resumed"]
    registry.liveness.unreachable(a, "connection refused")
    registry.liveness.unreachable(a, "connection refused")
    registry.liveness.reached(a)
    assert happened() == [("a", "offline", "connection refused"), ("a", "online", "it answers")]
    registry.liveness.refuses(b, "status 401")
    assert happened() == [("b", "unauthorized", "status 401")]
    registry.remove(a)
    assert [kind for _, kind, _ in happened()] == ["removed"]


def test_an_ejection_and_the_return_from_it_are_events() -> None:
    clock = Clock()
    registry = new_registry(clock, chance=lambda: 0.5)
    a, _ = fleet(registry, "a", "b")
    events = Events(clock)
    registry.fleet.on_event = events.agent_changed
    for _ in range(EJECTION_THRESHOLD):
        lease = registry.limiter.take(a, "m:latest")
        registry.ejection.failed(lease, "it broke")
        lease.release(Outcome.FAILED)
    clock.now = a.health.until
    half_open = registry.limiter.take(a, "m:latest")
    registry.ejection.succeeded(half_open)
    ejected, back = events
    assert (ejected.kind, back.kind) == (EventKind.EJECTED, EventKind.BACK)
    assert ejected.reason == "for 10 s: 3 failures in a row, the last: it broke"
