"""What the balancer adds to mitmdump's start: `python -m benches.start [--quick]`.

In turns a bare mitmdump is started, until its port takes a connection, and one with the balancer, until GET /health is
answered. Each has a confdir in which a start has already made the certificates, and what that start has compiled.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from benches.proxy import ADDON, MITMDUMP, START_SECONDS, call, free_port, machine, spread, started

TARGET = 1.3
STEP = 0.002
"""Seconds between two looks."""


@dataclass
class Start:
    """`wall` and `cpu` have a figure for each round, in seconds."""

    arguments: tuple[str, ...]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def takes_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def start(folder: Path, name: str, arguments: tuple[str, ...], *, asked: bool) -> tuple[float, float]:
    """Wall and CPU time until it is there."""
    port = free_port()
    command = [str(MITMDUMP), "-q", "--listen-host", "127.0.0.1", "-p", str(port)]
    command += ["--set", f"confdir={folder / name}", *arguments]
    log = folder / f"{name}.log"
    with ExitStack() as stack:
        began = time.perf_counter()
        process = stack.enter_context(started(command, log, OLLAMA_BALANCER_TOKEN="bench-start-token"))
        while not (takes_connections(port) and (not asked or call(port, "/health") in (200, 503))):
            if process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                raise SystemExit(f"{name} did not start:\n{log.read_text()}")
            time.sleep(STEP)
        wall = time.perf_counter() - began
        times = psutil.Process(process.pid).cpu_times()
        return wall, float(times.user + times.system)


def ratios(values: list[float], bare: list[float]) -> list[float]:
    return [value / base for value, base in zip(values, bare, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.start", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--rounds", type=int, help="rounds over both (default 15, with --quick 3)")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 15)
    if rounds < 1:
        parser.error("--rounds takes 1 or more")
    sides = {"mitmdump": Start(()), "with the balancer": Start(("-s", str(ADDON)))}
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        for number in range(rounds + 1):
            order = list(sides.items())
            for name, side in order if number % 2 else reversed(order):
                wall, cpu = start(Path(folder), name, side.arguments, asked=bool(side.arguments))
                if number:  # the first has made the certificates
                    side.wall.append(wall)
                    side.cpu.append(cpu)
            print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    bare, balancer = sides.values()
    print(f"{machine()}\n{rounds} rounds, median (lowest–highest round)\n")
    head = ["", "until it is there, ms", "CPU, ms"]
    rows = [head, ["---"] * len(head)]
    for name, side in sides.items():
        rows.append([name, *(spread([1e3 * value for value in values], 0) for values in (side.wall, side.cpu))])
    longer, more = ratios(balancer.wall, bare.wall), ratios(balancer.cpu, bare.cpu)
    rows.append(["times as long", spread(longer, 2), spread(more, 2)])
    lowest = (min(balancer.wall) / min(bare.wall), min(balancer.cpu) / min(bare.cpu))
    rows.append(["the same of the lowest rounds", *(f"{value:.2f}" for value in lowest)])
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    met = "met" if median(longer) <= TARGET else "not met"
    print(f"\nThe target, at most {TARGET:g} times as long until it is there, is {met}.")


if __name__ == "__main__":
    main()
