"""All modes on the same fleets and the same requests: `python -m benches.fleet_simulation`.

Prints, for each number of models and each load, what each mode did: the median over the seeds, with the lowest and the
highest; and by how much the goodput of `adaptive` is above that of `least_requests`, seed by seed. `--chart FILE` draws
the goodput as an SVG picture. `--help` lists what can be changed. `--tune NAME` shows instead what a constant of the
balancer comes to at other values; `--tune all` does so for each: see `tuning`. `--restart` compares the first requests
after a restart with what was learned and without. `--no-reporters` shows what it costs the mode `adaptive` to know of
hosts only what probes and answers show: see `no_reporters`.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benches.proxy import machine
from ollama_balancer.core.policies import POLICIES
from ollama_balancer.lab.simulation import Result, Simulation

from . import no_reporters, restart
from .chart import Point, svg
from .tuning import CONSTANTS, Tuning
from .workload import Shape, draw


@dataclass(frozen=True)
class Case:
    mode: str
    shape: Shape
    seed: int
    slots_known: bool


@dataclass(frozen=True)
class Figures:
    """What one run came to. Times in seconds."""

    goodput: float
    first: tuple[float, float, float]
    """Until the first token: p50, p95, p99."""
    total: tuple[float, float, float]
    loads: float
    """For 1,000 requests."""
    fairness: float


def run(case: Case) -> Figures:
    logging.disable(logging.CRITICAL)
    result = Simulation(draw(case.shape, case.seed), case.mode, case.seed, reports_slots=case.slots_known).run()
    return figures(result)


def figures(result: Result) -> Figures:
    return Figures(
        result.goodput,
        _percentiles(result.first),
        _percentiles(result.total),
        result.loads_per_thousand,
        result.fairness,
    )


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(values) or [float("nan")]
    p50, p95, p99 = (ordered[min(len(ordered) - 1, int(part * len(ordered)))] for part in (0.5, 0.95, 0.99))
    return p50, p95, p99


def spread(runs: Iterable[Figures], of: Callable[[Figures], float], digits: int = 1) -> str:
    """Median, lowest and highest."""
    values = [of(each) for each in runs]
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def point(runs: Sequence[Figures]) -> Point:
    values = [each.goodput for each in runs]
    return Point(min(values), statistics.median(values), max(values))


def differences(ours: Sequence[Figures], theirs: Sequence[Figures]) -> str:
    """Of goodput, seed by seed: the mean and its standard error, and the lowest and the highest."""
    values = [a.goodput - b.goodput for a, b in zip(ours, theirs, strict=True)]
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):+.2f} ± {error:.2f} points ({min(values):+.1f} to {max(values):+.1f})"


COLUMNS: tuple[tuple[str, Callable[[Figures], float], int], ...] = (
    ("goodput, %", lambda f: f.goodput, 1),
    ("TTFT p50, s", lambda f: f.first[0], 1),
    ("p95", lambda f: f.first[1], 1),
    ("p99", lambda f: f.first[2], 1),
    ("total p50, s", lambda f: f.total[0], 1),
    ("p95", lambda f: f.total[1], 1),
    ("p99", lambda f: f.total[2], 1),
    ("loads/1,000", lambda f: f.loads, 0),
    ("fairness", lambda f: f.fairness, 3),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.fleet_simulation", description=__doc__)
    parser.add_argument("--hosts", type=int, default=32)
    parser.add_argument("--models", type=int, nargs="+", default=[1, 6, 24])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.4, 0.7, 0.9], help="parts of the capacity")
    parser.add_argument("--modes", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1, help="of --no-reporters")
    parser.add_argument("--warm-up", type=float, default=150.0, help="of --no-reporters: seconds that are not counted")
    parser.add_argument("--seconds", type=float, default=600.0, help="simulated, after a warm-up of 300")
    parser.add_argument("--no-failures", action="store_true")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the goodput as an SVG picture")
    parser.add_argument("--slots-unknown", action="store_true", help="the reports do not say what a host runs at once")
    parser.add_argument("--bytes", action="store_true", help="of --no-reporters: what fits is a matter of bytes")
    parser.add_argument(
        "--no-reporters",
        metavar="SIDE",
        nargs="*",
        choices=no_reporters.SIDES,
        help=f"the mode adaptive by what it is told of the fleet: {', '.join(no_reporters.SIDES)}; by default all",
    )
    parser.add_argument(
        "--tune",
        metavar="NAME",
        nargs="+",
        choices=["all", *CONSTANTS],
        help=f"a constant of the balancer over a grid of values, in the mode adaptive: all, {', '.join(CONSTANTS)}",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="the first requests after a restart of the balancer, with what it had learned and without",
    )
    chosen = parser.parse_args(arguments)
    began = time.perf_counter()
    if chosen.restart:
        with ProcessPoolExecutor() as pool:
            print(restart.table(pool, range(1, chosen.seeds + 1)))
        print(f"took {time.perf_counter() - began:.0f} s")
        return
    if chosen.tune:
        with ProcessPoolExecutor() as pool:
            tuning = Tuning(pool, chosen.seeds)
            for name in CONSTANTS if "all" in chosen.tune else chosen.tune:
                print(tuning.table(name), flush=True)
        print(f"took {time.perf_counter() - began:.0f} s")
        return
    if chosen.no_reporters is not None:
        _without_reporters(chosen)
        print(f"took {time.perf_counter() - began:.0f} s")
        return
    print(f"{machine()}; {chosen.hosts} hosts, {chosen.seeds} seeds, {chosen.seconds:g} s each;")
    print("median (lowest–highest)\n")
    panels: dict[str, dict[str, list[Point]]] = {}
    with ProcessPoolExecutor() as pool:
        for models in chosen.models:
            name = f"{models} model{'s' if models > 1 else ''}"
            print(f"{name}:\n")
            panels[name] = _table(chosen, models, pool)
    if chosen.chart is not None:
        title = f"Goodput: first token within 10 s and served whole, by load; {chosen.hosts} hosts"
        chosen.chart.write_text(svg(panels, chosen.loads, title))
    print(f"took {time.perf_counter() - began:.0f} s")


def _without_reporters(chosen: argparse.Namespace) -> None:
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    sides = chosen.no_reporters or no_reporters.SIDES
    with ProcessPoolExecutor() as pool:
        for models in chosen.models:
            for load in chosen.loads:
                failures, sized = not chosen.no_failures, chosen.bytes
                shape = Shape(
                    chosen.hosts, models, load, chosen.seconds, chosen.warm_up, failures=failures, sized=sized
                )
                print(no_reporters.table(pool, shape, seeds, sides), flush=True)


def _table(chosen: argparse.Namespace, models: int, pool: ProcessPoolExecutor) -> dict[str, list[Point]]:
    """Run and print what concerns one number of models; the goodput by mode, a point for each load."""
    points: dict[str, list[Point]] = {mode: [] for mode in chosen.modes}
    by_how_much: list[str] = []
    print("| load | mode |", " | ".join(name for name, _, _ in COLUMNS), "|")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for load in chosen.loads:
        shape = Shape(chosen.hosts, models, load, chosen.seconds, failures=not chosen.no_failures)
        of_mode: dict[str, list[Figures]] = {}
        for mode in chosen.modes:
            cases = [Case(mode, shape, seed, not chosen.slots_unknown) for seed in range(1, chosen.seeds + 1)]
            runs = of_mode[mode] = list(pool.map(run, cases))
            points[mode].append(point(runs))
            cells = " | ".join(spread(runs, of, digits) for _, of, digits in COLUMNS)
            print(f"| {load:.0%} | {mode} | {cells} |", flush=True)
        if "adaptive" in of_mode and "least_requests" in of_mode:
            by_how_much.append(f"{load:.0%}: {differences(of_mode['adaptive'], of_mode['least_requests'])}")
    if by_how_much:
        print("\nGoodput of adaptive less that of least_requests, seed by seed:", "; ".join(by_how_much))
    print()
    return points


if __name__ == "__main__":
    main()
