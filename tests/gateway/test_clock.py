from __future__ import annotations

from ollama_balancer.gateway.clock import LONGEST_GAP, USUAL_GAP, SteadyClock
from tests.core.fakes import Clock


def test_it_counts_what_passes_between_readings() -> None:
    underneath = Clock()
    clock = SteadyClock(underneath)
    began = clock()
    for _ in range(10):
        underneath.now += LONGEST_GAP
        clock()
    assert clock() == began + 10 * LONGEST_GAP


def test_it_does_not_count_what_passes_while_nobody_can_read_it() -> None:
    underneath = Clock()
    clock = SteadyClock(underneath)
    began = clock()
    underneath.now += 3600
    assert clock() == began + USUAL_GAP
    underneath.now += 1
    assert clock() == began + USUAL_GAP + 1
