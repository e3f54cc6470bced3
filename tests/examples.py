"""How much is tried of what could be tried for ever."""

from __future__ import annotations

few = False
"""Whether the tests are run for an answer within seconds (`pytest -m unit`); every other run tries all."""

FEW = 10


def examples(number: int) -> int:
    """For `max_examples`."""
    return min(number, FEW) if few else number


def amount(full: int, quick: int) -> int:
    """How much or how often, where it takes long."""
    return quick if few else full
