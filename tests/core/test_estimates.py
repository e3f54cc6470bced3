"""Averages of logarithms, and what they say of agents and models that have not met yet."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_balancer.core.scoring.estimates import DECODE, MAX_MODELS, OUTPUT, Average, Estimates, Figure


def test_a_figure_that_nobody_has_shown_is_the_prior_and_rests_on_nothing() -> None:
    estimate = Figure(20.0, 0.01, 1e5).of("a", "m")
    assert estimate.value == pytest.approx(20)
    assert estimate.observations == 0


def test_an_estimate_says_on_how_many_observations_it_rests() -> None:
    figure = Figure(20.0, 0.01, 1e5)
    for _ in range(3):
        figure.observe("a", "m", 40.0)
    assert figure.of("a", "m").observations == 3
    assert figure.of("a", "m").value == pytest.approx(40)
    assert figure.of("b", "m").observations == 0


def test_a_model_that_is_new_to_an_agent_takes_what_others_take_times_its_own_factor() -> None:
    figure = Figure(20.0, 0.01, 1e5)
    for _ in range(50):
        figure.observe("slow", "m", 10.0)
        figure.observe("fast", "m", 40.0)
        figure.observe("slow", "n", 5.0)
    assert figure.value("fast", "n") == pytest.approx(20, rel=0.2)


def test_models_that_nothing_is_known_of_leave_nothing_when_they_are_replaced() -> None:
    estimates = Estimates()
    estimates.observe_output("m", 100)
    for model in ("m", "n"):
        estimates.forget_model(model)
    assert estimates._generations == {"m": 2}


def test_one_outlier_moves_an_estimate_a_little_and_a_lasting_change_moves_it_all_the_way() -> None:
    figure = Figure(20.0, 0.01, 1e5)
    for _ in range(20):
        figure.observe("a", "m", 20.0)
    figure.observe("a", "m", 20_000.0)
    assert figure.value("a", "m") < 30
    for _ in range(40):
        figure.observe("a", "m", 5.0)
    assert figure.value("a", "m") == pytest.approx(5, rel=0.01)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_positive_number_says_nothing(value: float) -> None:
    figure = Figure(20.0, 0.01, 1e5)
    figure.observe("a", "m", value)
    assert figure.of("a", "m").observations == 0
    assert figure.value("a", "m") == pytest.approx(20)


def test_models_are_learned_up_to_a_limit() -> None:
    estimates = Estimates()
    for number in range(MAX_MODELS + 5):
        estimates.decode.observe("a", f"m{number}", 50.0)
        estimates.observe_output(f"m{number}", 10)
    assert len(estimates.decode.models("a")) == MAX_MODELS
    assert estimates.output_of(f"m{MAX_MODELS}").observations == 0
    assert estimates.output_of("m0").observations == 1


def test_an_agent_that_is_gone_is_forgotten_and_its_models_are_not() -> None:
    estimates = Estimates()
    estimates.decode.observe("a", "m", 100.0)
    estimates.forget("a")
    assert estimates.decode.of("a", "m").observations == 0
    assert estimates.decode.value("b", "m") == pytest.approx(100)


def test_an_unknown_model_has_the_priors() -> None:
    estimates = Estimates()
    assert estimates.output_of("m").value == OUTPUT
    assert estimates.decode.value("a", "m") == pytest.approx(DECODE)


@given(st.lists(st.floats(1e-3, 1e6), min_size=1))
def test_an_average_stays_within_what_was_observed(values: list[float]) -> None:
    average = Average()
    for value in values:
        average.observe(math.log(value))
    assert math.log(min(values)) - 1e-9 <= average.log <= math.log(max(values)) + 1e-9
