from __future__ import annotations

from typing import Any

from ollama_balancer.fleet.tally import MOST_MODELS, MOST_PAIRS, OTHER, Ended, Histogram, Tally


def over(agent: str = "a", model: str = "m:latest", outcome: str = "succeeded", **more: Any) -> Ended:
    return Ended(agent, model, "/api/chat", outcome, 2.0, **more)


def test_a_value_counts_in_the_bucket_that_ends_with_it_and_in_all_above() -> None:
    histogram = Histogram((1.0, 5.0))
    for value in (0.5, 1.0, 1.5, 99.0):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2), ("5.0", 3), ("+Inf", 4)]
    assert histogram.sum == 102.0


def test_what_ended_is_counted_by_what_it_was() -> None:
    tally = Tally()
    tally.add(over(first_token=0.3, tokens_per_second=42.0, prompt_tokens=7, output_tokens=11, waited=1.5))
    tally.add(over(outcome="cancelled", cancelled_by="client", failures=(("b", "connect"),)))
    assert tally.requests == {
        ("a", "m:latest", "/api/chat", "succeeded"): 1,
        ("a", "m:latest", "/api/chat", "cancelled"): 1,
    }
    assert (tally.prompt_tokens, tally.output_tokens) == ({("a", "m:latest"): 7}, {("a", "m:latest"): 11})
    assert tally.failures == {("b", "connect"): 1}
    assert tally.cancels == {"client": 1}
    assert tally.durations["m:latest"].sum == 2.0
    assert tally.durations["m:latest"].buckets()[-1] == ("+Inf", 1), "only what succeeded has a duration"
    assert tally.first_tokens["m:latest"].sum == 0.3
    assert tally.rates["m:latest"].sum == 42.0
    assert tally.waits.sum == 1.5


def test_models_beyond_a_number_are_others() -> None:
    tally = Tally()
    for number in range(MOST_MODELS + 50):
        tally.add(over(model=f"m{number}"))
    assert tally.requests["a", OTHER, "/api/chat", "succeeded"] == 50
    assert len(tally.durations) == MOST_MODELS + 1
    tally.add(over(model="m0"))
    assert tally.requests["a", "m0", "/api/chat", "succeeded"] == 2


def test_agents_with_models_beyond_a_number_are_counted_by_agent_alone() -> None:
    tally = Tally()
    for number in range(MOST_PAIRS + 10):
        tally.add(over(agent=f"a{number}"))
    assert sum(key[1] == OTHER for key in tally.requests) == 10


def test_the_series_of_an_agent_that_is_no_more_go_and_its_place_is_free() -> None:
    tally = Tally()
    tally.add(over("a", output_tokens=3, failures=(("a", "status"), ("b", "status"))))
    tally.add(over("b", output_tokens=3))
    tally.add(over("", outcome="refused"))
    tally.forget_others({"b"})
    assert {key[0] for key in tally.requests} == {"b", ""}
    assert set(tally.output_tokens) == {("b", "m:latest")}
    assert set(tally.failures) == {("b", "status")}
    assert tally.durations["m:latest"].buckets()[-1] == ("+Inf", 2)
