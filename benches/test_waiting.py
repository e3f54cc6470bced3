"""What it costs to join and leave a line of 10,000: pytest benches/test_waiting.py"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from ollama_balancer.core.address import Address
from ollama_balancer.core.queue import Place, Waiter, WaitingLine
from ollama_balancer.core.scheduler import Matcher
from tests.core.fakes import entries, new_registry

WAITING = 10_000


def nobody(lease: object) -> None:
    pass


def full_line(clients: int, models: int) -> tuple[WaitingLine, list[Waiter]]:
    line = WaitingLine(time.monotonic, size=WAITING + 1)
    places = [Place(f"m{n}:latest") for n in range(models)]
    waiters = [line.join(places[n % models], f"c{n % clients}", nobody) for n in range(WAITING)]
    return line, waiters


SHAPES = pytest.mark.parametrize(
    ("clients", "models"),
    [(100, 50), (10_000, 1), (1, 1)],
    ids=["100 clients, 50 models", "10,000 clients", "1 client"],
)


@SHAPES
def test_arrival_and_departure(benchmark: Any, clients: int, models: int) -> None:
    """A request joins the full line and leaves it from its end."""
    line, _ = full_line(clients, models)
    place = Place("m0:latest")

    def join_and_leave() -> None:
        line.leave(line.join(place, "c0", nobody))

    benchmark(join_and_leave)
    assert len(line) == WAITING


@SHAPES
def test_departure_from_the_middle(benchmark: Any, clients: int, models: int) -> None:
    line, waiters = full_line(clients, models)
    middle = waiters[WAITING // 2]

    def setup() -> tuple[tuple[Waiter], dict[str, object]]:
        nonlocal middle
        if not middle.waiting:
            middle = line.join(middle.place, middle.client, nobody)
        return (middle,), {}

    benchmark.pedantic(line.leave, setup=setup, rounds=2000)


@SHAPES
def test_a_turn(benchmark: Any, clients: int, models: int) -> None:
    """A slot is given back, and whoever is next gets it."""
    registry = new_registry(slots=1)
    agent, _ = registry.register("a", Address("10.0.0.1", 11434))
    registry.inventory.update_models(agent, entries(*(f"m{n}" for n in range(models))))
    registry.liveness.reached(agent)
    line, _ = full_line(clients, models)
    Matcher(registry, line)
    got: list[Any] = [registry.limiter.take(agent, "m0:latest")]
    place = Place("m0:latest")
    release: Callable[[], object] = lambda: got.pop().release()  # noqa: E731

    def setup() -> None:
        line.join(place, "c0", got.append)
        registry.liveness.reached(agent)

    # Those who wait since the beginning are called first; they take the lease and are gone.
    for waiter in [w for at in line.places() for w in line.waiters(at)]:
        waiter.notify = got.append
    benchmark.pedantic(release, setup=setup, rounds=2000)
    assert len(got) == 1
