"""The balancer beside nginx, HAProxy and an oracle, before the same simulated hosts: `python -m benches.fleet_http`.

Everything between the clients and the hosts is real: processes, sockets, HTTP. The hosts are simulated in time that
goes `--speed` times as fast as the clock, and so does the balancer's clock: with `--speed 1` everything takes as long
as it says. Every side gets the same requests in the same run: one side after the other, or `--at-once` so many at the
same time, each with hosts of its own. Prints for each number of models and each load what each side did: the median
over the seeds, with the lowest and the highest; times are of the simulated hosts. The seeds are taken from the clock,
unless `--first-seed` is given. `--explain` adds what became of the requests that had to wait too long: see `explain`.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benches.fleet_simulation.workload import Shape
from benches.proxy import machine, spread
from ollama_balancer.core.policies import POLICIES

from . import sides
from .explain import explained
from .runs import Case, Run, run_together

COLUMNS: tuple[tuple[str, Callable[[Run], float], int], ...] = (
    ("goodput, %", lambda run: run.figures.goodput, 1),
    ("TTFT p50, s", lambda run: run.figures.p50, 2),
    ("p95", lambda run: run.figures.p95, 2),
    ("p99", lambda run: run.figures.p99, 2),
    ("loads/1,000", lambda run: run.figures.loads, 0),
    ("its CPU, % of a core", lambda run: 100 * run.proxy_cpu, 0),
)


def table(results: dict[str, list[Run]]) -> str:
    """With the goodput and the p95 beside the oracle's, seed by seed, where the oracle has run."""
    oracle = results.get(sides.ORACLE, [])
    names = [name for name, _, _ in COLUMNS]
    if oracle:
        names += ["goodput / oracle's", "p95 / oracle's"]
    lines = [["side", *names], ["---"] * (len(names) + 1)]
    for name, runs in results.items():
        cells = [spread([of(run) for run in runs], digits) for _, of, digits in COLUMNS]
        if oracle:
            pairs = list(zip(runs, oracle, strict=True))
            cells.append(spread([_part(run.figures.goodput, best.figures.goodput) for run, best in pairs], 3))
            cells.append(spread([_part(run.figures.p95, best.figures.p95) for run, best in pairs], 2))
        lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _part(value: float, of: float) -> float:
    return value / of if of else float("nan")


def remarks(results: dict[str, list[Run]]) -> str:
    """What says whether the bench itself was in the way."""
    runs = [run for each in results.values() for run in each]
    asked = median(run.figures.asked for run in runs)
    hosts, clients = (100 * max(cpu) for cpu in zip(*((run.hosts_cpu, run.clients_cpu) for run in runs), strict=True))
    behind, refused = max(run.figures.behind for run in runs), sum(run.figures.refused for run in runs)
    return (
        f"{asked:.0f} requests a run. The hosts took at most {hosts:.0f} % of a core and the clients {clients:.0f} %, "
        f"which sent no request more than {behind:.2f} s late. {refused} answers were refusals or not whole"
    )


def cases(chosen: argparse.Namespace, compared: Sequence[sides.Side], shape: Shape, seeds: Sequence[int]) -> list[Case]:
    """All of them, each seed beginning with another side."""
    return [
        Case(compared[(number + turn) % len(compared)], shape, seed, chosen.speed)
        for turn, seed in enumerate(seeds)
        for number in range(len(compared))
    ]


def measured(ahead: Sequence[Case], at_once: int) -> dict[str, list[Run]]:
    """The runs by side, and of each side seed by seed."""
    results: dict[str, list[Run]] = {case.side.name: [] for case in ahead}
    for begin in range(0, len(ahead), at_once):
        for run in run_together(ahead[begin : begin + at_once]):
            results[run.case.side.name].append(run)
            print(record(run), file=sys.stderr, flush=True)
    return results


def record(run: Run) -> dict[str, object]:
    case = run.case
    known = {"models": case.shape.models, "load": case.shape.load, "seed": case.seed, "side": case.side.name}
    return known | asdict(run.figures)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benches.fleet_http", description=__doc__)
    parser.add_argument("--modes", nargs="+", default=["adaptive"], choices=list(POLICIES), help="of the balancer")
    parser.add_argument("--sides", nargs="+", metavar="SIDE", help="only those, as the tables name them")
    parser.add_argument("--models", type=int, nargs="+", default=[1, 6])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.7], help="parts of the capacity")
    parser.add_argument("--seeds", type=int, help="how many; 3, with --quick 1")
    parser.add_argument("--first-seed", type=int, help="the others follow it; by default the clock's")
    parser.add_argument("--speed", type=float, default=20.0, help="simulated seconds in a second")
    parser.add_argument("--at-once", type=int, default=1, help="runs at the same time, for low speeds")
    parser.add_argument("--seconds", type=float, help="simulated, after the warm-up: 350, with --quick 40")
    parser.add_argument("--warm-up", type=float, help="simulated seconds that do not count: 150, with --quick 80")
    parser.add_argument("--bytes", action="store_true", help="what fits in a host is a matter of bytes")
    parser.add_argument("--quick", action="store_true", help="one short run of each side, to see that it works")
    parser.add_argument("--explain", action="store_true", help="where the time of the late requests went")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every run's figures there")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parser().parse_args(arguments)
    count = chosen.seeds or (1 if chosen.quick else 3)
    first = int(time.time()) if chosen.first_seed is None else chosen.first_seed
    seeds = range(first, first + count)
    seconds = chosen.seconds or (40.0 if chosen.quick else 350.0)
    warm_up = chosen.warm_up or (80.0 if chosen.quick else 150.0)

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, stop)
    began = time.perf_counter()
    compared, notes = sides.all_sides(chosen.modes)
    if chosen.sides:
        unknown = set(chosen.sides) - {side.name for side in compared}
        if unknown:
            raise SystemExit(f"no side {', '.join(sorted(unknown))}: there are {[side.name for side in compared]}")
        compared = [side for side in compared if side.name in chosen.sides]
    print(f"{machine()}; {', '.join(notes)}")
    print(f"8 hosts, {chosen.speed:g} times as fast as the clock, {chosen.at_once} at the same time; ", end="")
    print(f"seeds {first} to {seeds[-1]}, median (lowest–highest)\n", flush=True)
    runs = []
    for models in chosen.models:
        for load in chosen.loads:
            shape = Shape(8, models, load, seconds, warm_up, failures=False, sized=chosen.bytes)
            results = measured(cases(chosen, compared, shape, seeds), chosen.at_once)
            print(
                f"{models} model{'s' if models > 1 else ''}, {load:.0%}:\n\n{table(results)}\n\n{remarks(results)}.\n"
            )
            if chosen.explain:
                print(explained(results), flush=True)
            runs += [record(run) for each in results.values() for run in each]
    print(f"took {time.perf_counter() - began:.0f} s")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({"machine": machine(), "notes": notes, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
