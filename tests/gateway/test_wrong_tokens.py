from __future__ import annotations

from ollama_balancer.gateway.wrong_tokens import MAX_ADDRESSES, WrongTokens
from tests.core.fakes import Clock


def test_the_eleventh_wrong_token_of_an_address_within_a_minute_waits() -> None:
    clock = Clock()
    wrong = WrongTokens(clock)
    for _ in range(10):
        assert wrong.record("10.0.0.1") is None
        clock.now += 1
    assert wrong.record("10.0.0.1") == 50
    assert wrong.record("10.0.0.2") is None
    clock.now += 50
    assert wrong.record("10.0.0.1") is None


def test_addresses_are_remembered_within_bounds() -> None:
    wrong = WrongTokens(Clock())
    for number in range(3 * MAX_ADDRESSES):
        assert wrong.record(str(number)) is None
    assert len(wrong) == MAX_ADDRESSES


def test_old_addresses_are_forgotten() -> None:
    clock = Clock()
    wrong = WrongTokens(clock)
    for number in range(100):
        wrong.record(str(number))
    clock.now += 61
    for number in range(100, 160):
        wrong.record(str(number))
    assert len(wrong) == 60
