"""How long reports were on their way, by clocks that differ."""

from __future__ import annotations

import pytest

from ollama_balancer.core.report_delay import LONGEST, WINDOW, ReportDelay


def delays(reports: list[tuple[float, float]]) -> list[float]:
    """Of reports that were made and arrived then, the one by the host's clock and the other by ours."""
    delay = ReportDelay()
    return [round(delay.of(made, arrived), 3) for made, arrived in reports]


def test_the_quickest_report_has_arrived_at_once() -> None:
    assert delays([(0, 100.5), (5, 105), (10, 118), (15, 115.1)]) == [0, 0, 8, 0.1]


@pytest.mark.parametrize("by", [-30.0, -LONGEST, -3600.0, 30.0, 3600.0])
def test_a_clock_that_is_set_anew_is_followed(by: float) -> None:
    before = [(at, at + 100) for at in range(0, 50, 5)]
    after = [(at + by, at + 100) for at in range(50, 200, 5)]
    found = delays([*before, *after])
    assert found[: len(before)] == [0] * len(before)
    late = [after[at][1] for at, seconds in enumerate(found[len(before) :]) if seconds]
    assert all(at - before[-1][1] <= 2 * WINDOW for at in late)
    assert bool(late) is (-LONGEST <= by < 0)


def test_a_clock_that_drifts_is_followed() -> None:
    """One that gains or loses 100 ppm, for a day."""
    for pace in (0.9999, 1.0001):
        found = delays([(at * pace, at) for at in range(0, 86_400, 30)])
        assert max(found) <= 2 * WINDOW * 0.0001 + 0.001


def test_a_host_that_was_away_begins_anew() -> None:
    assert delays([(0, 100), (500, 640)]) == [0, 0]
    assert delays([(0, 100), (10, 140)]) == [0, 30]
