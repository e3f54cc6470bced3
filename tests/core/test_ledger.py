"""The ledger before it is written: sums, days, and its bounds."""

import pytest

from ollama_balancer.core import ledger as module
from ollama_balancer.core.ledger import DAY_HOURS, FIELDS, HOUR, NO_KEY, OTHER_KEYS, Entry, Ledger, Place, Query
from tests.core.fakes import Clock

DAY = 20_000
NOW = (DAY * DAY_HOURS + 10) * HOUR + 5.0
ALWAYS = Query(("key",), 0, 10**9)


def entry(key: str = "alice", model: str = "m:latest", agent: str = "a", outcome: str = "succeeded") -> Entry:
    return Entry(key, model, agent, outcome, 30, 12, 2.5, 0.5)


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(clock)


def figures(ledger: Ledger, query: Query = ALWAYS) -> dict[tuple[str | int, ...], dict[str, float]]:
    return {group: dict(zip(FIELDS, values, strict=True)) for group, values in ledger.pending(query).items()}


def test_requests_are_added_up_by_what_is_asked_for(ledger: Ledger, clock: Clock) -> None:
    for outcome in ("succeeded", "succeeded", "cancelled"):
        ledger.add(entry(outcome=outcome))
    ledger.add(entry(NO_KEY, "n:latest", "b", "rejected"))
    clock.now += HOUR
    ledger.add(entry(agent="b"))
    alice = figures(ledger)["alice",]
    assert (alice["succeeded"], alice["cancelled"], alice["rejected"]) == (3, 1, 0)
    assert (alice["prompt_tokens"], alice["output_tokens"], alice["seconds"], alice["waited"]) == (120, 48, 10.0, 2.0)
    start = DAY * DAY_HOURS
    assert set(ledger.pending(Query(("agent", "hour"), 0, 10**9))) == {
        ("a", start + 10),
        ("b", start + 10),
        ("b", start + 11),
    }
    assert set(ledger.pending(Query(("day", "model"), 0, 10**9))) == {(start, "m:latest"), (start, "n:latest")}
    assert set(ledger.pending(Query(("key",), start + 11, start + 12))) == {("alice",)}
    assert set(ledger.pending(Query(("model",), 0, 10**9, NO_KEY))) == {("n:latest",)}


def test_what_is_taken_is_gone_and_what_is_put_back_is_there_once(ledger: Ledger) -> None:
    ledger.add(entry())
    rows = ledger.take()
    assert ledger.pending(ALWAYS) == {}
    ledger.add(entry())
    ledger.put_back(rows)
    assert figures(ledger)["alice",]["succeeded"] == 2


def test_the_tokens_of_today_end_at_midnight(ledger: Ledger, clock: Clock) -> None:
    ledger.add(entry())
    ledger.take()
    ledger.add(entry())
    assert (ledger.used_today("alice"), ledger.used_today("bob")) == (84, 0)
    clock.now = (DAY + 1) * DAY_HOURS * HOUR - 0.1
    assert ledger.used_today("alice") == 84
    clock.now += 0.2
    assert ledger.used_today("alice") == 0
    ledger.add(entry())
    assert ledger.used_today("alice") == 42


def test_what_was_used_before_the_start_comes_on_top(ledger: Ledger, clock: Clock) -> None:
    ledger.add(entry())
    for _ in range(2):  # once only, however often it is read
        ledger.restore(DAY, {"alice": 100, "bob": 7})
        assert (ledger.used_today("alice"), ledger.used_today("bob")) == (142, 7)
    ledger.restore(DAY - 1, {"alice": 10_000})
    assert ledger.used_today("alice") == 142


def test_an_hour_has_so_many_rows_and_loses_no_total(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 10)
    monkeypatch.setattr(module, "MAX_KEYS", 15)
    for number in range(40):
        ledger.add(entry(f"key-{number}"))
        ledger.add(entry("key-0", f"made-up-{number}"))
    keys = figures(ledger)
    assert len(keys) == 16
    assert keys["key-0",]["succeeded"] == 41
    assert keys[OTHER_KEYS,]["succeeded"] == 25
    assert sum(each["succeeded"] for each in keys.values()) == 80
    assert len(ledger.take()) <= 10 + 15 + 1


@pytest.mark.chaos
def test_while_nothing_can_be_written_memory_is_bounded(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 100)
    for number in range(3000):
        clock.now += 60.0
        ledger.add(entry(f"key-{number % 30}", f"m-{number % 7}"))
        if number % 100 == 0:
            ledger.put_back(ledger.take())
        assert len(ledger.pending(Query(("key", "model", "hour"), 0, 10**9))) <= 101
    assert sum(each["succeeded"] for each in figures(ledger).values()) == 3000
    first = min(place.start for place in ledger.take())
    assert first == DAY * DAY_HOURS


def test_metrics_tell_so_many_keys_apart(ledger: Ledger) -> None:
    for number in range(module.MAX_SERIES + 50):
        ledger.add(entry(f"key-{number}"))
    assert len(ledger.requests) == len(ledger.prompt_tokens) == len(ledger.output_tokens) == module.MAX_SERIES + 1
    assert ledger.requests[OTHER_KEYS, "succeeded"] == 50
    assert ledger.output_tokens[OTHER_KEYS] == 600


def test_a_query_leaves_out_what_is_of_another_time_or_key() -> None:
    query = Query(("day", "hour", "key", "model", "agent"), 48, 72, "alice")
    assert query.group(Place(50, 1, "alice", "m", "a")) == (48, 50, "alice", "m", "a")
    for place in (Place(47, 1, "alice", "m", "a"), Place(72, 24, "alice", "m", "a"), Place(50, 1, "bob", "m", "a")):
        assert query.group(place) is None
