"""Chats, and half-way through one more client asks for 100 embeddings at once, of a model that nobody used before."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from benches.fleet_simulation.workload import BYTES_A_SECOND, Shape, draw
from ollama_balancer.lab.hosts import Model
from ollama_balancer.lab.workload import Request

from ..chats import BYTES_A_TOKEN, FILLER, Truth
from ..load import EMBEDDING, Clients, Message, Sent, open_loop
from .chats import ChatFigures, Chats
from .scene import Column, Drawn

COUNT = 100
TOKENS = 100, 500
"""Of a text, from and to."""

LIMIT = 300.0
"""Seconds after which an embedding that is not there has failed."""

LOAD_SECONDS = 3.0

MODEL = Model(
    "embedding:latest",
    pace=1.0,  # there is no answer to write
    prefill=6000.0,
    load=LOAD_SECONDS,
    output=0.0,
    digest=0.5,
    size=LOAD_SECONDS * BYTES_A_SECOND,
    parallel=1,
)


@dataclass(frozen=True)
class BurstFigures(ChatFigures):
    """Those of the chats, and the embeddings'."""

    last_embedding: float
    """Seconds from the first one's request until the last one was there."""
    failed: int
    """Of the embeddings."""


class Burst(Chats):
    title = f"chats, and {COUNT} embeddings at once"
    models = (6,)
    explained = False
    columns = (
        *Chats.columns[:4],
        Column("last embedding, s", "last_embedding", 1),
        Column("embeddings failed", "failed", 0),
        *Chats.columns[4:],
    )

    def draw(self, shape: Shape, seed: int) -> Drawn:
        chats = draw(shape, seed)
        rng, at = random.Random(f"{seed} burst"), shape.warm_up + shape.seconds / 2
        embeddings = tuple(
            Request(at, f"c{shape.clients}", MODEL, -number, rng.randint(*TOKENS), 0, 0)
            for number in range(1, COUNT + 1)
        )
        return Drawn(replace(chats, models=(*chats.models, MODEL)), embeddings)

    async def play(self, clients: Clients, drawn: Drawn) -> None:
        embeddings = list(texts(drawn.embeddings, len(drawn.workload.requests)))
        async with asyncio.TaskGroup() as group:
            group.create_task(super().play(clients, drawn))
            group.create_task(open_loop(clients, embeddings, drawn.workload.warm_up, patience=math.inf, limit=LIMIT))

    def figures(self, sent: Sent, drawn: Drawn) -> BurstFigures:
        begin = len(drawn.workload.requests)
        ended = [sent.ended(number) for number in range(begin, begin + len(drawn.embeddings))]
        there = [at for at in ended if at < math.inf]
        return BurstFigures(
            **vars(super().figures(sent, drawn)),
            last_embedding=max(there, default=math.nan) - drawn.embeddings[0].at,
            failed=len(ended) - len(there),
        )


def texts(requests: Sequence[Request], first: int) -> Iterator[Message]:
    for number, request in enumerate(requests, first):
        size = request.prompt * BYTES_A_TOKEN
        text = (f"{number} " + FILLER * (size // len(FILLER) + 1))[:size]
        truth = Truth(number, request.conversation, request.prompt, request.output)
        body = {"model": request.model.name, "input": text, "simulated": asdict(truth)}
        yield Message(number, request, json.dumps(body).encode(), EMBEDDING)
