"""How much is tried of what takes long."""

from collections.abc import Sequence

few = False
"""Whether the tests are run for an answer within seconds (`pytest -m unit`); every other run tries all."""

FEW_CASES = 2


def amount(full: int, quick: int) -> int:
    """How much or how often."""
    return quick if few else full


def some[T](cases: Sequence[T]) -> list[T]:
    """Up to FEW_CASES of a test's cases, from the first to the last."""
    if len(cases) <= FEW_CASES:
        return list(cases)
    return [cases[index * (len(cases) - 1) // (FEW_CASES - 1)] for index in range(FEW_CASES)]
