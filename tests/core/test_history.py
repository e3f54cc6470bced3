from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_balancer.core import history as module
from ollama_balancer.core.history import FIELDS, MINUTES, History
from ollama_balancer.core.stats import OTHER, RequestSummary

START = 1_700_000_040.0  # a minute begins


class Wall:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def over(agent: str = "a", model: str = "m:latest", outcome: str = "succeeded", **more: Any) -> RequestSummary:
    return RequestSummary(agent, model, "/api/chat", outcome, 2.0, **more)


def told(history: History, minutes: int = MINUTES) -> dict[int, dict[tuple[str, str], dict[str, float]]]:
    """By minutes since the start; figures that are 0 are left out."""
    return {
        number - int(START // 60): {
            key: {name: value for name, value in zip(FIELDS, values, strict=True) if value}
            for key, values in minute.rows.items()
        }
        for number, minute in history.last(minutes)
    }


def test_what_ended_is_added_up_by_minute_agent_and_model() -> None:
    wall = Wall()
    history = History(wall)
    history.add(over(prompt_tokens=7, output_tokens=11, first_token=0.5, waited=1.5))
    wall.now += 59.9
    history.add(over(outcome="failed"))
    history.add(over("b", "n:latest", "cancelled"))
    wall.now += 0.1
    history.add(over("", "", "refused"))
    whole = {"requests": 2, "succeeded": 1, "failed": 1, "prompt_tokens": 7, "output_tokens": 11, "seconds": 4}
    assert told(history) == {
        0: {
            ("a", "m:latest"): whole | {"waited": 1.5, "first_tokens": 1, "first_token_seconds": 0.5},
            ("b", "n:latest"): {"requests": 1, "cancelled": 1, "seconds": 2},
        },
        1: {("", ""): {"requests": 1, "refused": 1, "seconds": 2}},
    }
    assert list(told(history, 1)) == [1]


def test_a_day_is_kept_and_no_more() -> None:
    wall = Wall()
    history = History(wall)
    for _ in range(MINUTES + 5):
        history.add(over())
        wall.now += 60
    assert list(told(history)) == list(range(6, MINUTES + 5))
    history.add(over())
    assert list(told(history)) == list(range(6, MINUTES + 6))
    assert history._rows == MINUTES


def test_a_clock_that_was_set_back_leaves_nothing_in_the_future() -> None:
    wall = Wall()
    history = History(wall)
    wall.now += 86_400 * 365
    history.add(over())
    wall.now = START
    history.add(over())
    history.add(over())
    assert {minute: rows["a", "m:latest"]["requests"] for minute, rows in told(history).items()} == {0: 2}


def test_what_is_restored_is_added_unless_it_is_too_old_or_of_the_future() -> None:
    history = History(Wall())
    now = history.now
    row = [1.0] * len(FIELDS)
    for number in (now - MINUTES, now - MINUTES + 1, now, now, now + 1):
        history.put(number, ("a", "m"), row)
    assert {minute: rows["a", "m"]["requests"] for minute, rows in told(history).items()} == {1 - MINUTES: 1, 0: 2}


def test_a_minute_with_too_many_pairs_counts_the_rest_as_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS", 3)
    history = History(Wall())
    for number in range(10):
        history.add(over(f"agent-{number}"))
    history.add(over("agent-1"))
    [rows] = told(history).values()
    assert {key: row["requests"] for key, row in rows.items()} == {
        ("agent-0", "m:latest"): 1,
        ("agent-1", "m:latest"): 2,
        ("agent-2", "m:latest"): 1,
        ("", OTHER): 7,
    }


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 2)), max_size=200), st.integers(12, 30))
def test_with_too_many_rows_the_oldest_lose_detail_and_nothing_is_lost(
    ends: list[tuple[int, int, int]], most: int
) -> None:
    wall = Wall()
    history = History(wall)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_ROWS", most)
        for agent, model, minutes in ends:
            wall.now += minutes * 60
            if wall.now < START + 9 * 60:
                history.add(over(f"a{agent}", f"m{model}", output_tokens=3))
    counted = sum(row["requests"] for rows in told(history).values() for row in rows.values())
    tokens = sum(row["output_tokens"] for rows in told(history).values() for row in rows.values())
    kept = [1 for at in _times(ends) if at < START + 9 * 60]
    assert (counted, tokens) == (len(kept), 3 * len(kept))
    rows = sum(len(minute.rows) for _, minute in history.last(MINUTES))
    assert rows == history._rows <= most
    details = [minute.detail for _, minute in history.last(MINUTES) if len(minute.rows) > 1]
    assert details == sorted(details)


def _times(ends: list[tuple[int, int, int]]) -> list[float]:
    now, times = START, []
    for _, _, minutes in ends:
        now += minutes * 60
        times.append(now)
    return times
