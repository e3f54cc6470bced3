"""Clients whose next request depends on the answer before: it is sent when that is whole and a pause is over."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ollama_balancer.lab.simulation import PATIENCE
from ollama_balancer.lab.workload import Request

from .load import Clients, Message, finished

AGAIN = 1.0
"""Seconds until a request is sent once more whose answer was not whole."""


@dataclass(frozen=True)
class Chain:
    """Requests of one client, one after the other. Of `at` only the first one's says something."""

    first: int
    """The number in the trace that the first one has; the others follow."""
    requests: tuple[Request, ...]
    pauses: tuple[float, ...]
    """Seconds between the end of each answer and the next request."""

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + len(self.requests))


Bodies = Callable[[Iterable[Request], int], Iterator[bytes]]
"""Makes the bodies of these requests, when they are needed, of which the first one has that number."""


async def closed_loop(
    clients: Clients, chains: Sequence[Chain], bodies: Bodies, end: float, limit: float = 2 * PATIENCE
) -> None:
    """Run all chains. Nobody gives up; after `end` nothing new is sent, and `limit` seconds later all is over."""

    async def run(chain: Chain) -> None:
        await clients.until(chain.requests[0].at)
        made = zip(chain.requests, bodies(chain.requests, chain.first), (0.0, *chain.pauses), strict=True)
        for number, (request, body, pause) in enumerate(made, chain.first):
            await clients.until(clients.now + pause)
            since = clients.loop.time()
            while clients.now < end:
                if (await clients.ask(Message(number, request, body), math.inf, since=since)).whole:
                    break
                clients.again += 1
                await clients.until(clients.now + AGAIN)

    tasks = [asyncio.create_task(run(chain)) for chain in chains]
    await finished(tasks, (end + limit - clients.now) / clients.speed)
