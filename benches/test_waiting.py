"""What it costs to join and leave a line of 10,000: pytest benches/test_waiting.py"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from ollama_balancer.core.address import Address
from ollama_balancer.core.priority import Priority
from ollama_balancer.core.queue import RequestQueue
from ollama_balancer.core.scheduler import Scheduler
from ollama_balancer.core.tickets import QueueKey, Ticket
from tests.core.fakes import entries, new_registry

WAITING = 10_000


def nobody(lease: object) -> None:
    pass


def full_line(
    clients: int, models: int, classes: tuple[Priority, ...] = (Priority.NORMAL,)
) -> tuple[RequestQueue, list[Ticket]]:
    queue = RequestQueue(time.monotonic, size=WAITING + 1)
    places = [QueueKey(f"m{n}:latest") for n in range(models)]
    tickets = [
        queue.join(places[n % models], f"c{n % clients}", nobody, priority=classes[n // models % len(classes)])
        for n in range(WAITING)
    ]
    return queue, tickets


SHAPES = pytest.mark.parametrize(
    ("clients", "models"),
    [(100, 50), (10_000, 1), (1, 1)],
    ids=["100 clients, 50 models", "10,000 clients", "1 client"],
)


@SHAPES
def test_arrival_and_departure(benchmark: Any, clients: int, models: int) -> None:
    """A request joins the full line and leaves it from its end."""
    queue, _ = full_line(clients, models)
    place = QueueKey("m0:latest")

    def join_and_leave() -> None:
        queue.leave(queue.join(place, "c0", nobody))

    benchmark(join_and_leave)
    assert len(queue) == WAITING


@SHAPES
def test_departure_from_the_middle(benchmark: Any, clients: int, models: int) -> None:
    queue, tickets = full_line(clients, models)
    middle = tickets[WAITING // 2]

    def setup() -> tuple[tuple[Ticket], dict[str, object]]:
        nonlocal middle
        if not middle.waiting:
            middle = queue.join(middle.key, middle.client, nobody)
        return (middle,), {}

    benchmark.pedantic(queue.leave, setup=setup, rounds=2000)


@SHAPES
@pytest.mark.parametrize("classes", [(Priority.NORMAL,), tuple(Priority)], ids=["1 class", "3 classes"])
def test_a_turn(benchmark: Any, clients: int, models: int, classes: tuple[Priority, ...]) -> None:
    """A slot is given back, and whoever is next gets it."""
    registry = new_registry(slots=1)
    agent, _ = registry.register("a", Address("10.0.0.1", 11434))
    registry.inventory.update_models(agent, entries(*(f"m{n}" for n in range(models))))
    registry.liveness.reached(agent)
    queue, _ = full_line(clients, models, classes)
    Scheduler(registry, queue)
    got: list[Any] = [registry.limiter.take(agent, "m0:latest")]
    place = QueueKey("m0:latest")
    release: Callable[[], object] = lambda: got.pop().release()  # noqa: E731

    def setup() -> None:
        queue.join(place, "c0", got.append)
        registry.liveness.reached(agent)

    # Those who wait since the beginning are called first; they take the lease and are gone.
    for ticket in [w for at in queue.active_keys() for w in queue.tickets(at)]:
        ticket.notify = got.append
    benchmark.pedantic(release, setup=setup, rounds=2000)
    assert len(got) == 1
