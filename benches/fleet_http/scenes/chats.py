"""Chats of several turns, as `benches.fleet_simulation` draws them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benches.fleet_simulation.workload import Shape, draw
from ollama_balancer.lab.workload import Request

from ..chats import bodies
from ..load import Clients, Figures, Message, Sent, open_loop, percentile
from .scene import Column, Drawn, Scene, beside_oracle


@dataclass(frozen=True)
class ChatFigures(Figures):
    """Times are in simulated seconds."""

    goodput: float
    """Percent of them: the first token in time, and served whole."""
    p50: float
    """Until the first token; of those that had none, until they were given up."""
    p95: float
    p99: float

    @classmethod
    def of(cls, sent: Sent, numbers: Iterable[int]) -> ChatFigures:
        numbers = list(numbers)
        first = sorted(sent.first[number] for number in numbers if number in sent.calls)
        return cls(
            **vars(sent.figures(numbers)),
            goodput=goodput(sent, numbers),
            p50=percentile(first, 0.5),
            p95=percentile(first, 0.95),
            p99=percentile(first, 0.99),
        )


def goodput(sent: Sent, numbers: Iterable[int]) -> float:
    """Percent of these."""
    asked = sent.calls.keys() & numbers
    return 100 * len(sent.good & asked) / max(1, len(asked))


def messages(requests: Iterable[Request]) -> Iterator[Message]:
    requests = list(requests)
    for number, (request, body) in enumerate(zip(requests, bodies(requests), strict=True)):
        yield Message(number, request, body)


class Chats(Scene):
    title = "chats"
    models: tuple[int, ...] = (1, 6)
    explained = True
    columns: tuple[Column, ...] = (
        Column("goodput, %", "goodput", 1),
        Column("TTFT p50, s", "p50", 2),
        Column("p95", "p95", 2),
        Column("p99", "p99", 2),
        Column("loads/1,000", "loads", 0),
        beside_oracle("goodput", "goodput", 3),
        beside_oracle("p95", "p95", 2),
    )

    def draw(self, shape: Shape, seed: int) -> Drawn:
        return Drawn(draw(shape, seed))

    async def play(self, clients: Clients, drawn: Drawn) -> None:
        await open_loop(clients, messages(drawn.workload.requests), drawn.workload.warm_up)

    def figures(self, sent: Sent, drawn: Drawn) -> ChatFigures:
        return ChatFigures.of(sent, drawn.chats)
