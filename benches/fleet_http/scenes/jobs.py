"""Agents' jobs, as coding agents make them: each call's prompt is the one before, its answer and a tool's output.

All jobs begin at the same time, after a warm-up with chats in which each side gets to know the hosts. The agents wait
as long as it takes, and call again where an answer is not whole. The load is that of the chats.
"""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass
from functools import partial
from statistics import mean

from benches.fleet_simulation.workload import Shape
from ollama_balancer.lab.hosts import Model
from ollama_balancer.lab.workload import Request

from ..chats import bodies
from ..closed import Chain, closed_loop
from ..load import Clients, Figures, Sent, open_loop, percentile
from ..oracle import Goal
from .chats import messages
from .scene import Column, Drawn, Scene, beside_oracle, warm_up

JOBS = 12
CALLS = 15, 30
"""Of a job, from and to."""

FIRST_PROMPT = 1000, 3000
"""Tokens: the system prompt, the tools and the task."""

LAST_PROMPT = 8_000, 30_000
OUTPUT = 50, 400
TOOL_OUTPUT = 300, 3_000
TOOL_SECONDS = 0.0, 3.0
TOOLS = [{"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {}}}}]

LIMIT = 3600.0
"""Seconds after which a job that is not done counts as having taken so long."""


@dataclass(frozen=True)
class JobFigures(Figures):
    """Times are in simulated seconds."""

    makespan: float
    """Until the last job is done."""
    job_mean: float
    job_p95: float
    waited: float
    """For first tokens, all calls together."""
    again: int
    """Calls that were sent once more."""


class Jobs(Scene):
    title = f"{JOBS} agents' jobs of {CALLS[0]} to {CALLS[1]} calls"
    models = (2,)
    loads = (0.4,)
    goal = Goal(in_time=math.inf, answer_weight=1.0)
    columns = (
        Column("makespan, s", "makespan", 0),
        Column("a job, mean, s", "job_mean", 0),
        Column("p95", "job_p95", 0),
        Column("waited for first tokens, s", "waited", 0),
        Column("calls sent again", "again", 0),
        Column("loads/1,000", "loads", 0),
        beside_oracle("makespan", "makespan", 3),
        beside_oracle("mean", "job_mean", 3),
    )

    def draw(self, shape: Shape, seed: int) -> Drawn:
        chats = warm_up(shape, seed)
        rng = random.Random(f"{seed} jobs")
        chains: list[Chain] = []
        first = len(chats.requests)
        for number in range(JOBS):
            model = chats.models[number % len(chats.models)]
            chains.append(job(rng, number, model, shape.warm_up, first))
            first += len(chains[-1].requests)
        return Drawn(chats, chains=tuple(chains))

    async def play(self, clients: Clients, drawn: Drawn) -> None:
        begin = drawn.workload.warm_up
        async with asyncio.TaskGroup() as group:
            group.create_task(open_loop(clients, messages(drawn.workload.requests), begin))
            group.create_task(
                closed_loop(clients, drawn.chains, partial(bodies, tools=TOOLS), begin + LIMIT, limit=0.0)
            )

    def figures(self, sent: Sent, drawn: Drawn) -> JobFigures:
        begin = drawn.workload.warm_up
        seconds = sorted(min(LIMIT, sent.ended(chain.numbers[-1]) - begin) for chain in drawn.chains)
        numbers = [number for chain in drawn.chains for number in chain.numbers]
        return JobFigures(
            **vars(sent.figures(numbers)),
            makespan=seconds[-1],
            job_mean=mean(seconds),
            job_p95=percentile(seconds, 0.95),
            waited=sum(sent.first.values()),
            again=sent.again,
        )


def job(rng: random.Random, number: int, model: Model, at: float, first: int) -> Chain:
    """Tools' outputs are shared out so that the prompt grows to a size that is drawn, as far as their limits allow."""
    calls = rng.randint(*CALLS)
    outputs = [round(_log_uniform(rng, *OUTPUT)) for _ in range(calls)]
    prompt, last = rng.randint(*FIRST_PROMPT), rng.uniform(*LAST_PROMPT)
    least, most = TOOL_OUTPUT
    beyond = max(0.0, last - prompt - sum(outputs[:-1]) - least * (calls - 1))
    shares = [rng.expovariate() for _ in range(calls - 1)]
    tools = [min(most, round(least + beyond * share / sum(shares))) for share in shares]
    requests, known = [], 0
    for output, tool in zip(outputs, [*tools, 0], strict=True):
        requests.append(Request(at, f"c{number}", model, -1 - number, prompt, known, output))
        known = prompt + output
        prompt = known + tool
    pauses = tuple(rng.uniform(*TOOL_SECONDS) for _ in range(calls - 1))
    return Chain(first, tuple(requests), pauses)


def _log_uniform(rng: random.Random, least: float, most: float) -> float:
    return math.exp(rng.uniform(math.log(least), math.log(most)))
