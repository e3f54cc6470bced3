"""What it costs not to know a fleet: `python -m benches.fleet_simulation --no-reporters`.

The mode `adaptive` with reporters and without, without but for one piece of knowledge, and the oracle of
`benches.fleet_http`, which is told all there is to know of hosts and answers. All get the same requests.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from benches.fleet_http.oracle import Oracle, placed
from ollama_balancer.core.agent import Agent
from ollama_balancer.lab.engine import Engine
from ollama_balancer.lab.hosts import Host, Job
from ollama_balancer.lab.simulation import IN_TIME, PATIENCE, Result, Simulation
from ollama_balancer.lab.workload import Request, Workload

from .workload import Shape, draw

GIVEN: dict[str, frozenset[str]] = {
    "no reporters": frozenset(),
    "and slots given": frozenset({"slots"}),
    "and memory given": frozenset({"memory"}),
    "and loaded models given": frozenset({"loaded"}),
    "and all three given": frozenset({"slots", "memory", "loaded"}),
}
SIDES = ("oracle", "reporters", *GIVEN)

AT_ONCE = 0.25
"""Seconds between two looks at what a host has loaded, where that is given."""


class Without(Simulation):
    """No reporters, but for what is given: `slots`, `memory` (how many models fit), `loaded` (which are)."""

    def __init__(self, workload: Workload, seed: int, given: frozenset[str]) -> None:
        super().__init__(workload, "adaptive", seed, reporters=False)
        for agent, host in self.hosts.items():
            if "slots" in given:
                self.registry.configure_slots(agent, host.spec.parallel)
            if "memory" in given:
                agent.memory.most = agent.memory.room = host.spec.fits
            if "loaded" in given:
                self._look(agent)

    def _look(self, agent: Agent) -> None:
        if self.hosts[agent].up:
            self._query(agent)
        self.engine.after(AT_ONCE, lambda: self._look(agent))


class Knowing:
    """The oracle in simulated time."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.engine = engine = Engine()
        self.hosts = [Host(engine, spec, f"h{number}") for number, spec in enumerate(workload.hosts)]
        self.oracle = Oracle(engine, dict(zip(self.hosts, placed(workload.hosts, workload.requests), strict=True)))
        self.result = Result()
        for request in workload.requests:
            engine.after(request.at, lambda request=request: self._arrive(request))  # type: ignore[misc]

    def run(self) -> Result:
        workload = self.workload
        self.engine.run(workload.warm_up)
        before = sum(host.loads for host in self.hosts)
        self.engine.run(workload.warm_up + workload.seconds + 2 * PATIENCE)
        self.result.loads = sum(host.loads for host in self.hosts) - before
        return self.result

    def _arrive(self, request: Request) -> None:
        job = Job(
            request.model,
            request.conversation,
            request.prompt,
            request.output,
            began=lambda: timer.cancel(),
            ended=lambda whole: self._end(request, job, served=True),
            known=request.known,
        )
        timer = self.engine.after(PATIENCE, lambda: self._give_up(request, job))
        self.oracle.submit(job)

    def _give_up(self, request: Request, job: Job) -> None:
        self.oracle.cancel(job)
        self._end(request, job, served=False)

    def _end(self, request: Request, job: Job, *, served: bool) -> None:
        if request.at < self.workload.warm_up:
            return
        result, first = self.result, job.first - request.at if served else PATIENCE
        result.asked += 1
        result.first.append(first)
        if served:
            result.total.append(self.engine.now - request.at)
            result.good += first <= IN_TIME


@dataclass(frozen=True)
class Case:
    side: str
    shape: Shape
    seed: int


def run(case: Case) -> Result:
    logging.disable(logging.CRITICAL)
    workload = draw(case.shape, case.seed)
    if case.side == "oracle":
        return Knowing(workload).run()
    if case.side == "reporters":
        return Simulation(workload, "adaptive", case.seed).run()
    return Without(workload, case.seed, GIVEN[case.side]).run()


def table(pool: Executor, shape: Shape, seeds: Sequence[int], sides: Sequence[str]) -> str:
    """The mean over the seeds, ± its standard error; the last column is seed by seed."""
    lines = [
        f"{shape.models} models, {shape.hosts} hosts, {shape.load:.0%}, {shape.seconds:g} s, seeds "
        f"{seeds[0]}–{seeds[-1]}:\n",
        "| side | goodput, % | lowest | TTFT p50, s | p95 | p99 | loads/1,000 | goodput against reporters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    results = {side: list(pool.map(run, [Case(side, shape, seed) for seed in seeds])) for side in sides}
    base = results.get("reporters")
    for side, runs in results.items():
        goodput = [each.goodput for each in runs]
        cells = [error(goodput), f"{min(goodput):.1f}"]
        cells += [error([percentile(each.first, part) for each in runs]) for part in (0.5, 0.95, 0.99)]
        cells.append(error([each.loads_per_thousand for each in runs]))
        others = [each.goodput for each in base] if base is not None else []
        cells.append(error([a - b for a, b in zip(goodput, others, strict=True)], "+") if others else "")
        lines.append(f"| {side} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else math.nan


def error(values: Sequence[float], sign: str = "") -> str:
    spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):{sign}.1f} ± {spread:.1f}"
