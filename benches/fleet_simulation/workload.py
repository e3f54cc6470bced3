"""Who asks for what and when: conversations of several turns, models by Zipf's law, hosts of unequal speed.

All of it is drawn from one seed, and none of it depends on how requests are routed: each mode gets the same.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from ollama_balancer.lab import hosts as simulated
from ollama_balancer.lab.hosts import Model, Spec
from ollama_balancer.lab.workload import Request, Workload

THINKING = 20.0
"""Seconds on average between two turns of a conversation."""


@dataclass(frozen=True)
class Shape:
    """A fleet and what is asked of it. `load` is the part of its capacity that is asked for."""

    hosts: int = 32
    models: int = 6
    load: float = 0.7
    seconds: float = 900.0
    warm_up: float = 300.0
    """Seconds at the start that are not counted."""
    turns: float = 3.0
    """Turns of a conversation on average."""
    clients: int = 20
    failures: bool = True
    zipf: float = 1.0
    sized: bool = False
    """Whether what fits in a host is a matter of bytes: up to three models, as Ollama has it by default."""


def draw(shape: Shape, seed: int) -> Workload:
    rng = random.Random(seed)
    hosts = tuple(
        Spec(
            speed=math.exp(rng.uniform(0, math.log(8))),
            disk=math.exp(rng.uniform(-0.5, 0.5)),
            parallel=rng.randint(1, 4),
            fits=rng.randint(1, 4),
        )
        for _ in range(shape.hosts)
    )
    models = tuple(
        Model(
            name=f"model-{n}:latest",
            pace=20 * math.exp(rng.uniform(-0.5, 0.5)),
            prefill=800 * math.exp(rng.uniform(-0.5, 0.5)),
            load=math.exp(rng.uniform(math.log(5), math.log(40))),
            output=200 * math.exp(rng.uniform(-0.4, 0.4)),
            digest=rng.random(),
        )
        for n in range(shape.models)
    )
    if shape.sized:
        hosts, models = _sized(hosts, models, random.Random(f"{seed} memory"))
    requests = _drawn(shape, rng, hosts, models)
    return Workload(hosts, models, requests, shape.seconds, shape.warm_up, shape.failures)


MEMORIES = (8e9, 12e9, 16e9, 24e9, 32e9, 48e9)
"""Bytes for models that hosts have."""

BYTES_A_SECOND = 5e8
"""How fast a model is loaded: what takes longest to load is largest."""


def _sized(
    hosts: tuple[Spec, ...], models: tuple[Model, ...], rng: random.Random
) -> tuple[tuple[Spec, ...], tuple[Model, ...]]:
    """The same with memory and sizes in bytes; the largest model fits in each host."""
    models = tuple(replace(model, size=BYTES_A_SECOND * model.load) for model in models)
    largest = max(model.size for model in models)
    return tuple(replace(host, fits=3, memory=max(largest, rng.choice(MEMORIES))) for host in hosts), models


def again(workload: Workload, shape: Shape, seed: int) -> Workload:
    """Other requests to the same fleet."""
    requests = _drawn(shape, random.Random(f"{seed} again"), workload.hosts, workload.models)
    return replace(workload, requests=requests)


def _drawn(shape: Shape, rng: random.Random, hosts: tuple[Spec, ...], models: tuple[Model, ...]) -> tuple[Request, ...]:
    weights = popularity(shape)
    rate = capacity(hosts, models, weights)
    return tuple(_requests(shape, rng, models, weights, rate))


def popularity(shape: Shape) -> list[float]:
    """Of each model: the weight with which a conversation has it."""
    return [1 / (n + 1) ** shape.zipf for n in range(shape.models)]


FIRST_PROMPT = 400.0
"""Tokens on average of a conversation's first prompt."""

NEXT_PROMPT = 100.0
"""Tokens on average that a person adds with each turn."""


def capacity(
    hosts: tuple[Spec, ...], models: tuple[Model, ...], weights: list[float], prompt: float = FIRST_PROMPT
) -> float:
    """Requests per second of a fleet that has all its slots busy, each model where it is asked for and no prompt's
    beginning read twice. No routing can reach it: it is what the loads are given in parts of. `prompt` is how many
    tokens are read for a request.
    """
    total = sum(weights)
    pace = sum(
        weight / total * (model.output / model.pace + prompt / model.prefill)
        for model, weight in zip(models, weights, strict=True)
    )
    return sum(power(host) for host in hosts) / pace


def power(host: Spec) -> float:
    """What a host does with all its slots of one model busy; 1: as much as one of speed 1 with one slot."""
    return host.speed * host.parallel / (1 + simulated.SLOWDOWN * (host.parallel - 1))


def _requests(
    shape: Shape, rng: random.Random, models: tuple[Model, ...], weights: list[float], rate: float
) -> list[Request]:
    requests: list[Request] = []
    at, number = 0.0, 0
    arrivals = rate * shape.load / shape.turns
    end = shape.warm_up + shape.seconds
    # Conversations that began before time 0 are there, too.
    at = -THINKING * shape.turns * 3
    while at < end:
        at += rng.expovariate(arrivals)
        number += 1
        model = rng.choices(models, weights)[0]
        client = f"c{min(int(rng.expovariate(0.2)), shape.clients - 1)}"
        then, known, prompt = at, 0, size(rng, FIRST_PROMPT)
        while True:
            output = size(rng, model.output)
            if 0 <= then < end:
                requests.append(Request(then, client, model, number, prompt, known, output))
            if rng.random() < 1 / shape.turns:
                break
            known = prompt + output
            prompt = known + size(rng, NEXT_PROMPT)
            then += rng.expovariate(1 / THINKING) + 10.0
    return sorted(requests, key=lambda request: request.at)


def size(rng: random.Random, mean: float, spread: float = 0.8) -> int:
    """A number of tokens: log-normal with that mean."""
    return max(1, round(mean * math.exp(rng.gauss(-spread * spread / 2, spread))))
