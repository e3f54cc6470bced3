from __future__ import annotations

import pytest

from ollama_balancer.core.recent import MAX_DECISIONS, MAX_ENDED, POINTS, STEP, WINDOW, Recent
from ollama_balancer.core.stats import RequestSummary
from tests.core.fakes import Clock, fleet, new_registry, report


def over(outcome: str = "succeeded", first: float | None = 0.5, tokens: int = 30) -> RequestSummary:
    return RequestSummary("a", "m", "/api/chat", outcome, 1.0, first_token=first, output_tokens=tokens)


def test_rates_are_those_of_the_last_minute() -> None:
    clock = Clock()
    recent = Recent(clock)
    assert recent.figures() == {
        "requests_per_second": 0.0,
        "tokens_per_second": 0.0,
        "failures": 0.0,
        "ttft_p95": None,
    }
    clock.now += WINDOW
    for number in range(20):
        recent.add(over(first=0.1 * (number + 1)), {})
    for _ in range(5):
        recent.add(over("refused", first=None, tokens=0), {})
    figures = recent.figures()
    assert figures["requests_per_second"] == pytest.approx(25 / WINDOW)
    assert figures["tokens_per_second"] == pytest.approx(20 * 30 / WINDOW)
    assert figures["failures"] == 20.0
    assert figures["ttft_p95"] == pytest.approx(1.9)
    clock.now += WINDOW + 1
    assert recent.figures()["requests_per_second"] == 0.0


def test_right_after_the_start_a_rate_is_that_of_the_time_since() -> None:
    clock = Clock()
    recent = Recent(clock)
    clock.now += 10
    for _ in range(20):
        recent.add(over(), {})
    assert recent.figures()["requests_per_second"] == 2.0


def test_where_more_end_than_are_kept_a_rate_is_that_of_a_shorter_time() -> None:
    clock = Clock()
    recent = Recent(clock)
    clock.now += WINDOW
    for _ in range(2 * MAX_ENDED):
        clock.now += 0.001
        recent.add(over(), {})
    assert recent.figures()["requests_per_second"] == pytest.approx(1000, rel=0.01)


def test_the_last_decisions_are_kept() -> None:
    recent = Recent(Clock())
    for number in range(MAX_DECISIONS + 5):
        recent.add(over(), {"number": number})
    assert [each["number"] for each in recent.decisions] == list(range(5, MAX_DECISIONS + 5))


def test_curves_have_a_point_a_step_for_a_quarter_of_an_hour_and_end_with_their_agent() -> None:
    clock = Clock()
    registry, recent = new_registry(clock), Recent(clock)
    a, b = fleet(registry, "a", "b")
    registry.update_metrics("a", report(40, 20))
    recent.sample(registry)
    recent.sample(registry)
    clock.now += STEP
    registry.limiter.take(a)
    recent.sample(registry)
    curve = recent.curve(a)
    assert curve is not None
    assert (list(curve.in_flight), list(curve.cpu)) == ([0, 1], [40, 40])
    for _ in range(POINTS):
        clock.now += STEP
        recent.sample(registry)
    assert len(curve.in_flight) == POINTS
    assert curve.cpu[-1] is None, "an old report is no reading"
    registry.remove(b)
    clock.now += STEP
    recent.sample(registry)
    assert recent.curve(b) is None
