from __future__ import annotations

import random
from collections import Counter

from ollama_balancer.gateway.retry_budget import PER_SECOND, SHARE, WINDOW, RetryBudget
from tests.core.fakes import Clock


def test_three_retries_a_second_are_free() -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    assert sum(budget.spend() for _ in range(100)) == 30
    clock.now += WINDOW - 1
    assert not budget.spend()
    clock.now += 1
    assert sum(budget.spend() for _ in range(100)) == 30


def test_a_fifth_of_many_requests_may_be_sent_again() -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    retries = 0
    for _ in range(1000):
        clock.now += 0.01
        budget.count()
        retries += budget.spend() + budget.spend()  # each of them fails twice
    assert retries == 200 + 30


def test_no_ten_seconds_have_more_retries_than_that() -> None:
    chance, clock = random.Random(7), Clock()
    budget = RetryBudget(clock)
    requests, retries = Counter[int](), Counter[int]()
    for _ in range(20_000):
        clock.now += chance.choice((0.0, 0.001, 0.01, 0.02, 1.5))
        if chance.random() < 0.6:
            budget.count()
            requests[int(clock.now)] += 1
        elif budget.spend():
            retries[int(clock.now)] += 1
    for end in range(1000, int(clock.now), 7):
        window = range(end - WINDOW + 1, end + 1)  # whole seconds
        assert sum(retries[at] for at in window) <= SHARE * sum(requests[at] for at in window) + PER_SECOND * WINDOW


def test_what_is_remembered_is_bounded() -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    for _ in range(10_000):
        clock.now += 0.37
        budget.count()
        budget.spend()
    assert len(budget._seconds) <= WINDOW
    clock.now += 1000
    assert budget.limit == PER_SECOND * WINDOW
    assert repr(budget) == "RetryBudget(0 of 30 retries)"
