"""The balancer beside nginx, HAProxy and an oracle, before the same simulated hosts: `python -m benches.fleet_http`.

Everything between the clients and the hosts is real: processes, sockets, HTTP. The hosts are simulated in time that
goes `--speed` times as fast as the clock, and so does the balancer's clock: with `--speed 1` everything takes as long
as it says. Every side gets the same requests in the same run: one side after the other, or `--at-once` so many at the
same time, each with hosts of its own. Prints for each number of models and each load what each side did: the median
over the seeds, with the lowest and the highest; times are of the simulated hosts. The seeds are taken from the clock,
unless `--first-seed` is given. `--explain` adds what became of the requests that had to wait too long: see `explain`.

`--scene` says what the clients do and what happens to the hosts: see the modules of `scenes`. Of `jobs` the load is
that of the warm-up, and `--seconds` says nothing; LiteLLM takes part up to five times the clock's speed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benches import litellm
from benches.fleet_simulation.workload import Shape
from benches.proxy import machine, spread
from ollama_balancer.core.policies import POLICIES

from . import sides
from .explain import explained
from .runs import Case, Run, run_together
from .scenes import SCENES
from .scenes.scene import Column, Scene

CPU = "its CPU, % of a core"


def table(results: dict[str, list[Run]], columns: Sequence[Column]) -> str:
    """Without the columns beside a side that has not run."""
    columns = [column for column in columns if column.beside is None or column.beside in results]
    lines = [["side", *(column.title for column in columns), CPU], ["---"] * (len(columns) + 2)]
    for name, runs in results.items():
        cells = [spread(values(runs, column, results), column.digits) for column in columns]
        lines.append([name, *cells, spread([100 * run.proxy_cpu for run in runs], 0)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def values(runs: Sequence[Run], column: Column, results: dict[str, list[Run]]) -> list[float]:
    own = [getattr(run.figures, column.figure) for run in runs]
    if column.beside is None:
        return own
    others = [getattr(run.figures, column.figure) for run in results[column.beside]]
    return [_part(value, of) for value, of in zip(own, others, strict=True)]


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


def cases(scene: Scene, speed: float, compared: Sequence[sides.Side], shape: Shape, seeds: Sequence[int]) -> list[Case]:
    """All of them, each seed beginning with another side."""
    return [
        Case(compared[(number + turn) % len(compared)], shape, seed, speed, scene)
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


def choices(chosen: argparse.Namespace) -> Iterator[tuple[Scene, int, float]]:
    """What has a table of its own: a scene, how many models, and the load."""
    for scene in SCENES[chosen.scene]:
        for models in chosen.models or scene.models:
            for load in chosen.loads or scene.loads:
                yield scene, models, load


def record(run: Run) -> dict[str, object]:
    case = run.case
    known = {"scene": case.scene.title, "models": case.shape.models, "load": case.shape.load}
    known |= {"seed": case.seed, "side": case.side.name}
    return known | asdict(run.figures)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benches.fleet_http", description=__doc__)
    parser.add_argument("--scene", default="chats", choices=list(SCENES), help="what the clients do; %(default)s")
    parser.add_argument("--modes", nargs="+", default=["adaptive"], choices=list(POLICIES), help="of the balancer")
    parser.add_argument("--sides", nargs="+", metavar="SIDE", help="only those, as the tables name them")
    parser.add_argument("--models", type=int, nargs="+", help="how many; by default as the scene has it")
    parser.add_argument("--loads", type=float, nargs="+", help="parts of the capacity; by default as the scene has it")
    parser.add_argument("--seeds", type=int, help="how many; 3, with --quick 1")
    parser.add_argument("--first-seed", type=int, help="the others follow it; by default the clock's")
    parser.add_argument("--speed", type=float, default=20.0, help="simulated seconds in a second")
    parser.add_argument("--at-once", type=int, default=1, help="runs at the same time, for low speeds")
    parser.add_argument("--seconds", type=float, help="simulated, after the warm-up: 350, with --quick 40")
    parser.add_argument("--warm-up", type=float, help="simulated seconds that do not count: 150, with --quick 80")
    parser.add_argument("--bytes", action="store_true", help="what fits in a host is a matter of bytes")
    parser.add_argument("--quick", action="store_true", help="one short run of each side, to see that it works")
    parser.add_argument("--explain", action="store_true", help="where the time of the late requests went")
    parser.add_argument("--litellm", metavar="PATH", help="LiteLLM's program, where it is not beside Python's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every run's figures there")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parser().parse_args(arguments)
    count = chosen.seeds or (1 if chosen.quick else 3)
    first = int(time.time()) if chosen.first_seed is None else chosen.first_seed
    seeds = range(first, first + count)
    seconds = chosen.seconds or (40.0 if chosen.quick else 350.0)
    warm_up = (80.0 if chosen.quick else 150.0) if chosen.warm_up is None else chosen.warm_up
    scenes = SCENES[chosen.scene]
    if chosen.explain and not all(scene.explained for scene in scenes):
        raise SystemExit(f"--explain knows nothing of the scene {chosen.scene}")

    if chosen.litellm and litellm.installed(chosen.litellm) is None:
        raise SystemExit(f"--litellm: there is no program {chosen.litellm}")

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, stop)
    began = time.perf_counter()
    compared, notes = sides.all_sides(chosen.modes, chosen.speed, chosen.litellm)
    if chosen.sides:
        unknown = set(chosen.sides) - {side.name for side in compared}
        if unknown:
            raise SystemExit(f"no side {', '.join(sorted(unknown))}: there are {[side.name for side in compared]}")
        compared = [side for side in compared if side.name in chosen.sides]
    print(f"{machine()}; {', '.join(notes)}")
    print(f"8 hosts, {chosen.speed:g} times as fast as the clock, {chosen.at_once} at the same time; ", end="")
    print(f"seeds {first} to {seeds[-1]}, median (lowest–highest)\n", flush=True)
    runs = []
    for scene, models, load in choices(chosen):
        shape = Shape(8, models, load, seconds, warm_up, failures=False, sized=chosen.bytes)
        results = measured(cases(scene, chosen.speed, compared, shape, seeds), chosen.at_once)
        heading = f"{scene.title}; {models} model{'s' if models > 1 else ''}, {load:.0%}"
        print(f"{heading}:\n\n{table(results, scene.columns)}\n\n{remarks(results)}.\n", flush=True)
        if chosen.explain:
            print(explained(results), flush=True)
        runs += [record(run) for each in results.values() for run in each]
    print(f"took {time.perf_counter() - began:.0f} s")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({"machine": machine(), "notes": notes, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
