"""Conversations that begin with a long document of their own: whoever sends the next turn elsewhere has it read again.

The load is a part of what the hosts could serve if they kept no prompt: at the default one the fleet is not overloaded
without affinity either. There is one model, so that loads of models do not come into it. Who asks waits as long as it
takes, and thinks before the next question.
"""

from __future__ import annotations

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
    draw,
    popularity,
    size,
)
from ollama_balancer.lab.hosts import Model
from ollama_balancer.lab.workload import Request

from ..chats import bodies
from ..closed import Chain, closed_loop
from ..load import Clients, Figures, Sent, percentile
from ..oracle import Goal
from .scene import ADAPTIVE, Column, Drawn, Scene

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
    loads = (0.3,)
    goal = Goal(in_time=math.inf)
    columns = (
        Column("TTFT of later turns p50, s", "p50", 2),
        Column("mean", "mean", 2),
        Column("p95", "p95", 2),
        Column("of first turns p50", "first_p50", 2),
        Column("p50 / adaptive's", "p50", 1, ADAPTIVE),
        Column("mean / adaptive's", "mean", 1, ADAPTIVE),
    )

    def __init__(self, document: int) -> None:
        self.document = document
        self.title = f"conversations about documents of {document:,} tokens"

    def draw(self, shape: Shape, seed: int) -> Drawn:
        fleet = draw(replace(shape, seconds=0.0, warm_up=0.0), seed)
        rng, weights = random.Random(f"{seed} prefixes"), popularity(shape)
        output = mean(model.output for model in fleet.models)
        prompt = self.document + FIRST_PROMPT + (mean(TURNS) - 1) / 2 * (NEXT_PROMPT + output)
        rate = capacity(fleet.hosts, fleet.models, weights, prompt) * shape.load / mean(TURNS)
        chains: list[Chain] = []
        first, at, end = 0, rng.expovariate(rate), shape.warm_up + shape.seconds
        while at < end:
            (model,) = rng.choices(fleet.models, weights)
            chains.append(self._conversation(rng, len(chains), model, at, first, shape.clients))
            first += len(chains[-1].requests)
            at += rng.expovariate(rate)
        workload = replace(fleet, seconds=shape.seconds, warm_up=shape.warm_up)
        return Drawn(workload, chains=tuple(chains))

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
        warm_up = drawn.workload.warm_up
        bodies_of = partial(bodies, document=self.document)
        await closed_loop(clients, drawn.chains, bodies_of, warm_up, warm_up + drawn.workload.seconds)

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
