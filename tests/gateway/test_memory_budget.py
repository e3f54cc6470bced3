from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ollama_balancer.gateway.memory_budget import STEP, MemoryBudget, machine_memory


def test_a_hold_grows_in_steps_and_is_released_once() -> None:
    budget = MemoryBudget(10 * STEP)
    held = budget.hold()
    assert held.grow(1)
    assert (held.size, budget.used) == (STEP, STEP)
    assert held.grow(STEP)
    assert budget.used == STEP
    assert held.grow(STEP + 1)
    assert budget.used == 2 * STEP
    held.release()
    held.release()
    assert budget.used == 0
    assert not held.grow(1), "what is over takes no more"
    assert budget.used == 0


def test_beyond_the_limit_nothing_is_taken() -> None:
    budget = MemoryBudget(3 * STEP)
    first, second = budget.hold(), budget.hold()
    assert first.grow(2 * STEP)
    assert not second.grow(STEP + 1)
    assert (second.size, budget.used) == (0, 2 * STEP)
    assert second.grow(STEP)
    assert not first.grow(2 * STEP + 1)
    assert first.size == 2 * STEP
    second.release()
    assert first.grow(3 * STEP)


def test_what_is_only_kept_goes_before_anybody_is_refused() -> None:
    budget = MemoryBudget(4 * STEP)
    budget.used = kept = 3 * STEP
    asked: list[int] = []

    def make_room(missing: int) -> None:
        nonlocal kept
        asked.append(missing)
        given = min(kept, -(-missing // STEP) * STEP)
        kept -= given
        budget.give_back(given)

    budget.on_shortage = make_room
    held = budget.hold()
    assert held.grow(3 * STEP)
    assert asked == [2 * STEP]
    assert (kept, budget.used) == (STEP, 4 * STEP)
    assert not held.grow(6 * STEP)
    assert kept == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20 * STEP)), max_size=60))
def test_what_is_used_is_what_is_held(steps: list[tuple[int, int]]) -> None:
    budget = MemoryBudget(12 * STEP)
    holds = [budget.hold() for _ in range(4)]
    for number, size in steps:
        if size % 7 == 0:
            holds[number].release()
            holds[number] = budget.hold()
        elif holds[number].grow(size):
            assert holds[number].size >= size
        assert budget.used == sum(held.size for held in holds) <= budget.limit
    for held in holds:
        held.release()
    assert budget.used == 0


def test_a_machine_has_memory() -> None:
    assert 64 * 1024**2 < machine_memory() < 1024**5
