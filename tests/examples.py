"""How many examples a property is tried with."""

from __future__ import annotations

few = False
"""Whether the tests are run for an answer within seconds (`pytest -m unit`); every other run tries all."""

FEW = 20


def examples(number: int) -> int:
    """For `max_examples`."""
    return min(number, FEW) if few else number
