"""Conversations that begin with a long document of their own: whoever sends the next turn elsewhere has it read again.

The load is a part of what the hosts could serve if they kept no prompt. At the default ones the fleet is not overloaded
without affinity either, and there are fewer conversations at a time than slots to keep their prompts. There is one
model, and a warm-up with usual chats, so that loads of models do not come into it. Who asks waits as long as it takes,
and thinks before the next question.
"""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean

from benches.fleet_simulation.workload import (
    FIRST_PROMPT,
    NEXT_PROMPT,
    THINKING,
    Shape,
    capacity,
    popularity,
    size,
)
from ollama_balancer.lab.hosts import Model
from ollama_balancer.lab.workload import Request

from ..chats import bodies
from ..closed import Chain, closed_loop
from ..load import Clients, Figures, Sent, open_loop, percentile
from ..oracle import Goal
from .chats import messages
from .scene import ADAPTIVE, Column, Drawn, Scene, warm_up

WARM_UP_LOAD = 0.7

TURNS = 4, 8
"""Of a conversation, from and to."""


@dataclass(frozen=True)
class PrefixFigures(Figures):
    """Times are in simulated seconds, to the first token. All but the last are of turns after the first."""

    p50: float
    mean: float
    p95: float
    first_p50: float
    """Of first turns."""


class Prefixes(Scene):
    models = (1,)
    goal = Goal(in_time=math.inf)
    columns = (
        Column("TTFT of later turns p50, s", "p50", 2),
        Column("mean", "mean", 2),
        Column("p95", "p95", 2),
        Column("of first turns p50", "first_p50", 2),
        Column("p50 / adaptive's", "p50", 1, ADAPTIVE),
        Column("mean / adaptive's", "mean", 1, ADAPTIVE),
    )

    def __init__(self, document: int, load: float) -> None:
        self.document = document
        self.bodies = partial(bodies, document=document)
        self.loads = (load,)
        self.title = f"conversations about documents of {document:,} tokens"

    def draw(self, shape: Shape, seed: int) -> Drawn:
        chats = warm_up(replace(shape, load=WARM_UP_LOAD), seed)
        rng, weights = random.Random(f"{seed} prefixes"), popularity(shape)
        output = mean(model.output for model in chats.models)
        prompt = self.document + FIRST_PROMPT + (mean(TURNS) - 1) / 2 * (NEXT_PROMPT + output)
        rate = capacity(chats.hosts, chats.models, weights, prompt) * shape.load / mean(TURNS)
        chains: list[Chain] = []
        first, at = len(chats.requests), shape.warm_up + rng.expovariate(rate)
        while at < shape.warm_up + shape.seconds:
            (model,) = rng.choices(chats.models, weights)
            chains.append(self._conversation(rng, len(chains), model, at, first, shape.clients))
            first += len(chains[-1].requests)
            at += rng.expovariate(rate)
        return Drawn(chats, chains=tuple(chains))

    def _conversation(
        self, rng: random.Random, number: int, model: Model, at: float, first: int, clients: int
    ) -> Chain:
        turns = rng.randint(*TURNS)
        known, prompt, requests = 0, self.document + size(rng, FIRST_PROMPT), []
        for _ in range(turns):
            output = size(rng, model.output)
            requests.append(Request(at, f"c{number % clients}", model, -1 - number, prompt, known, output))
            known = prompt + output
            prompt = known + size(rng, NEXT_PROMPT)
        pauses = tuple(10.0 + rng.expovariate(1 / THINKING) for _ in range(turns - 1))
        return Chain(first, tuple(requests), pauses)

    async def play(self, clients: Clients, drawn: Drawn) -> None:
        begin = drawn.workload.warm_up
        async with asyncio.TaskGroup() as group:
            group.create_task(open_loop(clients, messages(drawn.workload.requests), begin))
            group.create_task(closed_loop(clients, drawn.chains, self.bodies, begin + drawn.workload.seconds))

    def figures(self, sent: Sent, drawn: Drawn) -> PrefixFigures:
        firsts = {chain.first for chain in drawn.chains}
        first = sorted(seconds for number, seconds in sent.first.items() if number in firsts)
        later = sorted(seconds for number, seconds in sent.first.items() if number not in firsts)
        return PrefixFigures(
            **vars(sent.figures(sent.calls)),
            p50=percentile(later, 0.5),
            mean=mean(later) if later else math.nan,
            p95=percentile(later, 0.95),
            first_p50=percentile(first, 0.5),
        )
