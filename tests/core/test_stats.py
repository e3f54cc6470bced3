from __future__ import annotations

from typing import Any

from ollama_balancer.core.stats import (
    MAX_MODELS,
    MAX_PAIRS,
    MAX_REMOVED,
    OTHER,
    REMOVED,
    Histogram,
    RequestMetrics,
    RequestSummary,
)


def over(agent: str = "a", model: str = "m:latest", outcome: str = "succeeded", **more: Any) -> RequestSummary:
    return RequestSummary(agent, model, "/api/chat", outcome, 2.0, **more)


def test_a_value_counts_in_the_bucket_that_ends_with_it_and_in_all_above() -> None:
    histogram = Histogram((1.0, 5.0))
    for value in (0.5, 1.0, 1.5, 99.0):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2), ("5.0", 3), ("+Inf", 4)]
    assert histogram.sum == 102.0


def test_what_ended_is_counted_by_what_it_was() -> None:
    metrics = RequestMetrics()
    metrics.add(over(first_token=0.3, tokens_per_second=42.0, prompt_tokens=7, output_tokens=11, waited=1.5))
    metrics.add(over(outcome="cancelled", cancelled_by="client", failures=(("b", "connect"),)))
    assert metrics.requests == {
        ("a", "m:latest", "/api/chat", "succeeded"): 1,
        ("a", "m:latest", "/api/chat", "cancelled"): 1,
    }
    assert (metrics.prompt_tokens, metrics.output_tokens) == (
        {("a", "m:latest"): 7},
        {("a", "m:latest"): 11},
    )
    assert metrics.failures == {("b", "connect"): 1}
    assert metrics.cancels == {"client": 1}
    assert metrics.durations["m:latest"].sum == 2.0
    assert metrics.durations["m:latest"].buckets()[-1] == ("+Inf", 1), "only what succeeded has a duration"
    assert metrics.first_tokens["m:latest"].sum == 0.3
    assert metrics.rates["m:latest"].sum == 42.0
    assert metrics.waits.sum == 1.5


def test_models_beyond_a_number_are_others() -> None:
    metrics = RequestMetrics()
    for number in range(MAX_MODELS + 50):
        metrics.add(over(model=f"m{number}"))
    assert metrics.requests["a", OTHER, "/api/chat", "succeeded"] == 50
    assert len(metrics.durations) == MAX_MODELS + 1
    metrics.add(over(model="m0"))
    assert metrics.requests["a", "m0", "/api/chat", "succeeded"] == 2


def test_agents_with_models_beyond_a_number_are_counted_by_agent_alone() -> None:
    metrics = RequestMetrics()
    for number in range(MAX_PAIRS + 10):
        metrics.add(over(agent=f"a{number}"))
    assert sum(key[1] == OTHER for key in metrics.requests) == 10


def test_a_rejection_has_its_status() -> None:
    metrics = RequestMetrics()
    for status in (400, 404, 404):
        metrics.add(over(outcome="rejected", status=status))
    assert metrics.rejections == {400: 1, 404: 2}
    assert metrics.totals(2) == {
        "requests": 5,
        "succeeded": 0,
        "failed": 0,
        "cancelled": 0,
        "rejected": 3,
        "refused": 0,
        "in_flight": 2,
    }


def test_the_counts_of_agents_that_are_no_more_stay_and_those_of_the_longest_gone_are_put_together() -> None:
    metrics = RequestMetrics()
    for number in range(MAX_REMOVED + 5):
        metrics.add(over(f"a{number}", output_tokens=3, prompt_tokens=1, failures=((f"b{number}", "status"),)))
        metrics.fold_removed({"here"})
    metrics.add(over("here", outcome="failed"))
    metrics.add(over("", outcome="refused"))
    agents = {key[0] for key in metrics.requests}
    assert agents >= {"here", "", REMOVED, f"a{MAX_REMOVED + 4}"}
    assert not agents & {"a0", "a1"}
    everybody = {agent for agent, _ in metrics.failures} | agents
    assert len(everybody) <= MAX_REMOVED + 5
    assert sum(metrics.requests.values()) == sum(metrics.outcomes.values()) == MAX_REMOVED + 7
    assert sum(metrics.output_tokens.values()) == 3 * sum(metrics.prompt_tokens.values()) == 3 * (MAX_REMOVED + 5)
    assert sum(metrics.failures.values()) == MAX_REMOVED + 5


def test_an_agent_that_comes_back_goes_on_with_its_counts() -> None:
    metrics = RequestMetrics()
    for fleet in ({"a"}, set(), {"a"}):
        metrics.add(over("a"))
        metrics.fold_removed(fleet)
    for number in range(2 * MAX_REMOVED):
        metrics.add(over(f"b{number}"))
        metrics.fold_removed({"a"})
    assert metrics.requests["a", "m:latest", "/api/chat", "succeeded"] == 3


def test_agents_that_come_and_go_for_ever_take_no_more_room() -> None:
    metrics = RequestMetrics()
    for number in range(2 * MAX_PAIRS):
        metrics.add(over(f"a{number}", model=f"m{number % 7}"))
        if number % 50 == 0:
            metrics.fold_removed(set())
    metrics.fold_removed(set())
    assert len(metrics.requests) <= MAX_REMOVED + 7
    assert sum(metrics.requests.values()) == 2 * MAX_PAIRS
