"""What a scene is: how its requests are drawn, how they are sent, and which figures are printed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

from benches.fleet_simulation.workload import Shape, draw
from ollama_balancer.lab.workload import Request, Workload

from ..closed import Chain
from ..load import Clients, Figures, Sent
from ..oracle import Goal
from ..sides import ORACLE

ADAPTIVE = "balancer, adaptive"


@dataclass(frozen=True)
class Drawn:
    """The hosts, and all that is asked of them. Numbers of requests go through from the first list to the last."""

    workload: Workload
    """Its requests are chats, which are sent at their times."""
    embeddings: tuple[Request, ...] = ()
    chains: tuple[Chain, ...] = ()

    @property
    def requests(self) -> list[Request]:
        of_chains = [request for chain in self.chains for request in chain.requests]
        return [*self.workload.requests, *self.embeddings, *of_chains]

    @property
    def chats(self) -> Iterator[int]:
        """The numbers of those chats that count."""
        requests, warm_up = self.workload.requests, self.workload.warm_up
        return (number for number, request in enumerate(requests) if request.at >= warm_up)


@dataclass(frozen=True)
class Column:
    """Of the table: one of the scene's figures."""

    title: str
    figure: str
    digits: int
    beside: str | None = None
    """The side by whose figure, with the same seed, it is divided."""


class Scene(ABC):
    title: str
    """Of a table."""
    models: tuple[int, ...] = (6,)
    """How many, unless given."""
    loads: tuple[float, ...] = (0.7,)
    """Parts of the capacity, unless given; of what, the scene says."""
    goal = Goal()
    """The oracle's."""
    explained = False
    """Whether `explain` knows what happened."""
    columns: tuple[Column, ...]

    @abstractmethod
    def draw(self, shape: Shape, seed: int) -> Drawn: ...

    @abstractmethod
    async def play(self, clients: Clients, drawn: Drawn) -> None:
        """Send all requests, and wait for the answers."""

    @abstractmethod
    def figures(self, sent: Sent, drawn: Drawn) -> Figures: ...


def warm_up(shape: Shape, seed: int) -> Workload:
    """The fleet with the chats of the warm-up alone, in which each side gets to know the hosts."""
    return replace(draw(replace(shape, seconds=0.0), seed), seconds=shape.seconds)


def beside_oracle(title: str, figure: str, digits: int) -> Column:
    return Column(f"{title} / oracle's", figure, digits, ORACLE)
