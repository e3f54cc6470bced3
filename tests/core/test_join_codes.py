"""Join codes: one host each, for a while, and no more of them than somebody can have meant."""

from __future__ import annotations

import pytest

from ollama_balancer.core.join_codes import MAX_OPEN, JoinCodes, TooManyCodesError
from tests.core.fakes import Clock


def test_a_code_is_taken_once_and_kept_as_a_hash() -> None:
    codes = JoinCodes(Clock())
    first, second = codes.make("gpu-1", 3600), codes.make(None, 3600)
    assert first != second
    assert len(first) > 32
    assert first not in repr(vars(codes))
    assert codes.take(b"join_wrong") is None
    assert codes.take(b"") is None
    taken = codes.take(first.encode())
    assert taken is not None
    assert taken.agent == "gpu-1"
    assert codes.take(first.encode()) is None
    codes.put_back(taken)
    assert codes.take(first.encode()) == taken
    other = codes.take(second.encode())
    assert other is not None
    assert other.agent is None


def test_a_code_expires_also_one_that_is_put_back() -> None:
    clock = Clock()
    codes = JoinCodes(clock)
    one, two = codes.make(None, 60), codes.make(None, 61)
    taken = codes.take(two.encode())
    assert taken is not None
    codes.put_back(taken)
    clock.now += 60
    assert codes.take(one.encode()) is None
    clock.now += 1
    assert codes.take(two.encode()) is None


def test_so_many_may_be_open_and_expired_ones_make_room() -> None:
    clock = Clock()
    codes = JoinCodes(clock)
    for _ in range(MAX_OPEN):
        codes.make(None, 60)
    with pytest.raises(TooManyCodesError):
        codes.make(None, 60)
    clock.now += 60
    assert codes.take(codes.make(None, 60).encode()) is not None
    assert len(codes) == 0
