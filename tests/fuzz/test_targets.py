"""The short form of the fuzzing of single readers: the same inputs each time."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.fuzz.targets import LIMITS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused_as_documented(name: str) -> None:
    target = TARGETS[name]
    target.run(settings(LIMITS, derandomize=True, max_examples=target.examples))
