"""The first requests after a restart of the balancer, with what it had learned and without: `--restart`.

The hosts go on: they have loaded what they had loaded before. The same requests come to both.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from ollama_balancer.lab.simulation import Simulation

from .workload import Shape, again, draw

SHAPE = Shape(8, 24, 0.6, 900.0, 0.0, failures=False)
"""What comes before the restart."""

AWAY = 60.0
"""Seconds between the two processes."""

FIRST = 200
"""Requests that are counted."""


@dataclass(frozen=True)
class Case:
    seed: int
    reports_slots: bool
    remembers: bool


@dataclass(frozen=True)
class Figures:
    goodput: float
    first: float
    """Mean seconds until the first token, or until the client left."""
    late: float
    """The same, p95."""
    loads: float
    """For 1,000 requests."""


def run(case: Case) -> Figures:
    logging.disable(logging.CRITICAL)
    workload = draw(SHAPE, case.seed)
    before = Simulation(workload, "adaptive", case.seed, reports_slots=case.reports_slots)
    before.run()
    hosts = tuple(replace(host.spec, loaded=tuple(host.runners)) for host in before.hosts.values())
    requests = again(workload, SHAPE, case.seed).requests[:FIRST]
    after = Simulation(
        replace(workload, hosts=hosts, requests=requests), "adaptive", case.seed, reports_slots=case.reports_slots
    )
    if case.remembers:
        knowledge, end = before.registry.knowledge, 0.0
        for agent in knowledge.agents():
            record = knowledge.record(agent, end)
            if record is not None:
                after.registry.knowledge.restore(record, end + AWAY)
        for output in knowledge.outputs(end):
            after.registry.knowledge.restore_output(output, end + AWAY)
    result = after.run()
    times = sorted(result.first)
    late = times[int(0.95 * len(times))]
    return Figures(result.goodput, statistics.fmean(times), late, result.loads_per_thousand)


COLUMNS: tuple[tuple[str, Callable[[Figures], float]], ...] = (
    ("goodput, %", lambda f: f.goodput),
    ("TTFT mean, s", lambda f: f.first),
    ("TTFT p95, s", lambda f: f.late),
    ("loads/1,000", lambda f: f.loads),
)


def table(pool: Executor, seeds: Sequence[int]) -> str:
    """Median (lowest–highest), and the mean difference that the file makes with its standard error, seed by seed."""
    lines = [f"| slots | the file | {' | '.join(name for name, _ in COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for reports_slots in (True, False):
        slots = "reported" if reports_slots else "learned"
        cases = {kept: [Case(seed, reports_slots, kept) for seed in seeds] for kept in (False, True)}
        without, kept = list(pool.map(run, cases[False])), list(pool.map(run, cases[True]))
        for name, runs in (("missing", without), ("kept", kept)):
            cells = [_spread([of(each) for each in runs]) for _, of in COLUMNS]
            lines.append(f"| {slots} | {name} | {' | '.join(cells)} |")
        differences = [[of(b) - of(a) for a, b in zip(without, kept, strict=True)] for _, of in COLUMNS]
        lines.append(f"| {slots} | difference | {' | '.join(map(_mean, differences))} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def _mean(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):+.2f} ± {error:.2f}"
