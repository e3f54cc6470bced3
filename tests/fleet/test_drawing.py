"""The set to draw from, against a plain one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_balancer.fleet.drawing import DrawingSet


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8))))
def test_it_holds_what_a_set_holds_and_each_of_its_members_can_be_drawn(steps: list[tuple[bool, int]]) -> None:
    drawing, plain = DrawingSet[int](), set[int]()
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
    if plain:
        assert {drawing.draw((n + 0.5) / len(plain)) for n in range(len(plain))} == plain
        assert {drawing.draw(0.0), drawing.draw(1.0)} <= plain


def test_from_an_empty_set_nothing_can_be_drawn() -> None:
    with pytest.raises(IndexError):
        DrawingSet[int]().draw(0.5)
