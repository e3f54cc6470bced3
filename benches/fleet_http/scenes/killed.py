"""Chats, and half-way through a host dies: the one of median power. A minute later it is back with nothing loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from benches.fleet_simulation.workload import power
from ollama_balancer.lab.hosts import Spec

from ..load import Clients, Sent
from .chats import ChatFigures, Chats, goodput
from .scene import Column, Drawn

DOWN_SECONDS = 60.0


@dataclass(frozen=True)
class KilledFigures(ChatFigures):
    goodput_down: float
    """Percent, of the requests that came while the host was down."""


class Killed(Chats):
    title = "chats, and a host is down for 60 s"
    models = (6,)
    columns = (
        *Chats.columns[:4],
        Column("cut or refused", "refused", 0),
        Column("goodput in the 60 s, %", "goodput_down", 1),
        *Chats.columns[4:],
    )

    async def play(self, clients: Clients, drawn: Drawn) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._kill(clients, drawn))
            group.create_task(super().play(clients, drawn))

    async def _kill(self, clients: Clients, drawn: Drawn) -> None:
        await clients.until(killed_at(drawn))
        await clients.tell("/crash", {"number": median_host(drawn.workload.hosts), "seconds": DOWN_SECONDS})

    def figures(self, sent: Sent, drawn: Drawn) -> KilledFigures:
        at, requests = killed_at(drawn), drawn.workload.requests
        down = [number for number in drawn.chats if at <= requests[number].at < at + DOWN_SECONDS]
        return KilledFigures(**vars(super().figures(sent, drawn)), goodput_down=goodput(sent, down))


def killed_at(drawn: Drawn) -> float:
    return drawn.workload.warm_up + drawn.workload.seconds / 2


def median_host(hosts: Sequence[Spec]) -> int:
    """The number of the host of which half of the others can do less."""
    return sorted(range(len(hosts)), key=lambda number: power(hosts[number]))[len(hosts) // 2]
