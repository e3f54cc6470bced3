"""The set to draw from, against a plain one."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from ollama_balancer.core.random_set import RandomSet


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8))))
def test_it_holds_what_a_set_holds_and_draws_from_that(steps: list[tuple[bool, int]]) -> None:
    drawing, plain = RandomSet[int](), set[int]()
    for add, number in steps:
        if add:
            drawing.add(number)
            plain.add(number)
        else:
            drawing.discard(number)
            plain.discard(number)
        assert len(drawing) == len(plain)
        assert set(drawing) == plain
        assert (number in drawing) == (number in plain)
    for always in (lambda: 0.0, lambda: 0.5, lambda: math.nextafter(1.0, 0.0)):
        assert drawing.draw(always, 3).keys() <= plain
        assert len(drawing.draw(always, 3)) == min(1, len(plain))


def test_each_member_may_be_drawn() -> None:
    drawing = RandomSet[int]()
    for number in range(5):
        drawing.add(number)
    chances = iter([0.1, 0.3, 0.5, 0.7, 0.9])
    assert list(drawing.draw(lambda: next(chances), 5)) == [0, 1, 2, 3, 4]
