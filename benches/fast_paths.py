"""What each of the balancer's fast paths gives: `python -m benches.fast_paths [--quick] [--loads N ...] [--rounds N]`.

The same load goes through the same balancer four times: with all of them; without the selector, so that asyncio hands
each chunk to the relay; without the relay, so that chunks go mitmproxy's own way; and without the short way for hooks
either. The sides take turns in every round, as in `benches.proxy`, which has the load and says what its columns mean.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from .proxy import (
    LOADS,
    NO_SHORTCUTS,
    OPEN_FILES,
    QUICK,
    Figures,
    Load,
    Side,
    allow_open_files,
    check,
    end_on_signals,
    known,
    machine,
    markdown,
    run_load,
    spread,
    start_balancer,
    start_upstream,
    time_of,
)

ALL, NO_SELECTOR, NO_RELAY, NONE = "all", "no selector", "no selector, no relay", "none"

OPTIONS: dict[str, Sequence[str]] = {
    ALL: (),
    NO_SELECTOR: ("--set", "balancer_relay_selector=false"),
    NO_RELAY: ("--set", "balancer_relay=false"),
    NONE: NO_SHORTCUTS,
}

STEPS = (("selector", ALL, NO_SELECTOR), ("relay", NO_SELECTOR, NO_RELAY), ("hooks", NO_RELAY, NONE))
"""What a fast path gives is the difference between the two sides."""

type Results = dict[Load, dict[str, Figures]]


def measure(folder: Path, rounds: int, scale: float, loads: Sequence[Load]) -> Results:
    with ExitStack() as stack:
        ports, upstream = start_upstream(stack, folder, 1)
        sides = [start_balancer(stack, folder, name, ports, options=options) for name, options in OPTIONS.items()]
        for side in sides:
            check(side)
        results: Results = {load: {side.name: Figures() for side in sides} for load in loads}
        for number in range(rounds):
            for load in loads:
                print(f"round {number + 1} of {rounds}: {load.name}", file=sys.stderr, flush=True)
                for side in _from(sides, number):
                    run_load(side, load, load.length(scale), upstream, results[load][side.name])
        return results


def _from(sides: list[Side], number: int) -> list[Side]:
    at = number % len(sides)
    return sides[at:] + sides[:at]


def streams_table(results: Results) -> str:
    lines = [["load", "fast paths", "CPU of a chunk, us", "with set-up, us", "delay p50, ms", "delay p99, ms"]]
    for load, sides in results.items():
        if load.kind == "streams":
            for name, figures in sides.items():
                cells = [spread(known(figures.steady_us), 1), spread(figures.cpu_us, 1)]
                times = [time_of(figures.p50_ms, 2), time_of(figures.p99_ms, 2)]
                lines.append([load.name, name, *cells, *times])
    return markdown(lines)


def requests_table(results: Results) -> str:
    lines = [["load", "fast paths", "CPU of a request, us", "requests/s", "latency p50, ms"]]
    for load, sides in results.items():
        if load.kind == "requests":
            for name, figures in sides.items():
                cells = [spread(figures.cpu_us, 0), spread(figures.rate, 0), spread(figures.p50_ms, 2)]
                lines.append([load.name, name, *cells])
    return markdown(lines)


def gains_table(results: Results) -> str:
    """What each gives, round by round where it is known: of a chunk while all streams run, or of a request."""
    lines = [["load", *(f"{name} saves, us" for name, _, _ in STEPS)]]
    for load, sides in results.items():
        lines.append([load.name, *(spread(saved(load, sides[fast], sides[slow]), 1) for _, fast, slow in STEPS)])
    return markdown(lines)


def saved(load: Load, fast: Figures, slow: Figures) -> list[float]:
    if load.kind == "requests":
        pairs = zip(fast.cpu_us, slow.cpu_us, strict=False)
        return [much - little for little, much in pairs]
    chunks = zip(fast.steady_us, slow.steady_us, strict=False)
    return [much - little for little, much in chunks if little is not None and much is not None]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.fast_paths", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds of some loads")
    parser.add_argument("--rounds", type=int, default=0, help="rounds over all sides (default 3, with --quick 2)")
    parser.add_argument(
        "--loads", type=int, nargs="+", metavar="N", help="those of so many connections or streams only"
    )
    chosen = parser.parse_args()
    rounds = chosen.rounds or (2 if chosen.quick else 3)
    end_on_signals()
    allow_open_files(OPEN_FILES)
    numbers = chosen.loads or (QUICK if chosen.quick else {load.number for load in LOADS})
    loads = [load for load in LOADS if load.number in numbers]
    with tempfile.TemporaryDirectory(prefix="bench-paths-") as folder:
        results = measure(Path(folder), rounds, 0.4 if chosen.quick else 1.0, loads)
    print(f"{machine()}; {rounds} rounds, median (lowest–highest round)\n")
    for table in (streams_table, requests_table, gains_table):
        print(table(results), end="\n\n")
    errors = sum(figures.errors for sides in results.values() for figures in sides.values())
    if errors:
        raise SystemExit(f"{errors} requests or streams were not answered as they should be")


if __name__ == "__main__":
    main()
