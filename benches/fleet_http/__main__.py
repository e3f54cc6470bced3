"""The balancer beside nginx, HAProxy and an oracle, before the same simulated hosts: `python -m benches.fleet_http`.

Everything between the clients and the hosts is real: processes, sockets, HTTP. The hosts are simulated in time that
goes `--scale` times as fast as the clock, and so does the balancer's clock. Every side gets the same requests in the
same run, one side after the other. Prints for each number of models what each side did: the median over the seeds,
with the lowest and the highest; times are of the simulated hosts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil

from benches.fleet_simulation.workload import Shape
from benches.proxy import machine, spread, started
from ollama_balancer.core.policies import POLICIES

from . import sides
from .chats import bodies
from .hosts import Ports, Setting
from .load import Figures, send
from .sides import Side, Stage


@dataclass(frozen=True)
class Run:
    """One side with one seed. The others are shares of one core."""

    figures: Figures
    proxy_cpu: float
    hosts_cpu: float
    clients_cpu: float


def run(side: Side, shape: Shape, seed: int, scale: float) -> Run:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-fleet-")))
        setting = Setting(asdict(shape), seed, scale, oracle=side.oracle)
        workload = setting.workload
        if not workload.requests:
            raise SystemExit("nobody asks for anything: a longer run (--seconds) or a higher --load is needed")
        log = folder / "hosts.log"
        hosts = stack.enter_context(started([sys.executable, "-m", "benches.fleet_http.hosts"], log))
        assert hosts.stdin is not None
        assert hosts.stdout is not None
        print(json.dumps(asdict(setting)), file=hosts.stdin, flush=True)
        line = hosts.stdout.readline()
        if not line:
            raise SystemExit(f"the hosts did not start:\n{log.read_text()}")
        ports = Ports(**json.loads(line))
        proxy = side.start(Stage(stack, folder, ports, workload.hosts, hosts, scale))
        chats = list(bodies(workload.requests))
        between = [] if proxy.process is None else [proxy.process, *proxy.process.children(recursive=True)]
        watched = between, [psutil.Process(hosts.pid)], [psutil.Process()]
        before, began = [cpu_seconds(each) for each in watched], time.perf_counter()
        figures = asyncio.run(send(proxy.port, ports.oracle, workload, chats, scale))
        seconds = time.perf_counter() - began
        shares = [(cpu_seconds(each) - used) / seconds for used, each in zip(before, watched, strict=True)]
        return Run(figures, *shares)


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


COLUMNS: tuple[tuple[str, Callable[[Run], float], int], ...] = (
    ("goodput, %", lambda run: run.figures.goodput, 1),
    ("TTFT p50, s", lambda run: run.figures.p50, 2),
    ("TTFT p95, s", lambda run: run.figures.p95, 2),
    ("loads/1,000", lambda run: run.figures.loads, 0),
    ("its CPU, % of a core", lambda run: 100 * run.proxy_cpu, 0),
)


def table(results: dict[str, list[Run]]) -> str:
    lines = [["side", *(name for name, _, _ in COLUMNS)], ["---"] * (len(COLUMNS) + 1)]
    for name, runs in results.items():
        lines.append([name, *(spread([of(run) for run in runs], digits) for _, of, digits in COLUMNS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.fleet_http", description=__doc__)
    parser.add_argument("--modes", nargs="+", default=["adaptive"], choices=list(POLICIES), help="of the balancer")
    parser.add_argument("--models", type=int, nargs="+", default=[1, 6])
    parser.add_argument("--load", type=float, default=0.7, help="part of the capacity")
    parser.add_argument("--seeds", type=int, help="how many; 3, with --quick 1")
    parser.add_argument("--scale", type=float, default=20.0, help="simulated seconds in a second")
    parser.add_argument("--seconds", type=float, help="simulated, after the warm-up: 350, with --quick 40")
    parser.add_argument("--warm-up", type=float, help="simulated seconds that do not count: 150, with --quick 80")
    parser.add_argument("--quick", action="store_true", help="one short run of each side, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every run's figures there")
    chosen = parser.parse_args(arguments)
    seeds = chosen.seeds or (1 if chosen.quick else 3)
    seconds = chosen.seconds or (40.0 if chosen.quick else 350.0)
    warm_up = chosen.warm_up or (80.0 if chosen.quick else 150.0)

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, stop)
    began = time.perf_counter()
    compared, notes = sides.all_sides(chosen.modes)
    print(f"{machine()}; {', '.join(notes)}")
    print(f"8 hosts at {chosen.load:.0%} of their capacity, {chosen.scale:g} times as fast as the clock; ", end="")
    print(f"{seeds} seed{'s' if seeds > 1 else ''}, median (lowest–highest)\n", flush=True)
    everything = []
    for models in chosen.models:
        shape = Shape(8, models, chosen.load, seconds, warm_up, failures=False)
        results: dict[str, list[Run]] = {side.name: [] for side in compared}
        for seed in range(1, seeds + 1):
            for number in range(len(compared)):
                side = compared[(number + seed) % len(compared)]
                done = run(side, shape, seed, chosen.scale)
                results[side.name].append(done)
                print(f"{models} models, seed {seed}, {side.name}: {done.figures}", file=sys.stderr, flush=True)
                everything.append({"models": models, "seed": seed, "side": side.name, **asdict(done)})
        print(f"{models} model{'s' if models > 1 else ''}:\n\n{table(results)}\n\n{remarks(results)}.\n", flush=True)
    print(f"took {time.perf_counter() - began:.0f} s")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({"machine": machine(), "notes": notes, "runs": everything}, indent=2) + "\n")


if __name__ == "__main__":
    main()
