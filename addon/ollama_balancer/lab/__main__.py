"""What would another mode have done with the requests of yesterday?

Takes the flows that a balancer has served and mitmproxy has saved (mitmdump -s addon/balancer.py -w FILE), lets the
same requests come at the same times to a simulation of the same hosts, as fast as their answers show them to be, once
in each mode, and prints how long the clients would have waited and which host would have had which part. The first row
is what was recorded: the closer the simulation of that mode comes to it, the more the others are worth.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.policies import POLICIES
from ..text import one_line

if TYPE_CHECKING:
    from .caveats import Settings
    from .report import Report

HOW_TO_RECORD = "save flows with: mitmdump -s addon/balancer.py -w FILE"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 where there is nothing to simulate."""
    chosen = parser().parse_args(arguments)
    from .caveats import Settings

    settings = Settings(chosen.seed, chosen.load, chosen.patience, chosen.slots, chosen.fits, chosen.keep_alive)
    log_level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what the balancer's core says of simulated hosts concerns nobody
    try:
        report = experiment(chosen.files, chosen.modes, settings)
    except ValueError as e:
        print(f"lab: {one_line(str(e), 1000)}", file=sys.stderr)
        return 2
    finally:
        logging.disable(log_level)
    for problem in report.recording.problems:
        print(f"lab: warning: {problem}", file=sys.stderr)
    print(json.dumps(report.as_json(), indent=2) if chosen.json else report.as_text())
    return 0


def experiment(files: Sequence[Path], modes: Sequence[str], settings: Settings) -> Report:
    """Read, learn and simulate. ValueError: what is wrong and what to do, in a line."""
    from .flows import read
    from .rates import learn
    from .recorded_workload import as_recorded, workload
    from .report import Report
    from .simulation import Simulation

    recording = read(files)
    if not recording.requests:
        found = (
            f"none of its {recording.flows} flows is an inference request that this balancer routed"
            if recording.flows
            else "it is empty"
        )
        raise ValueError("; ".join([*(recording.problems or [f"{files[0]}: {found}"]), HOW_TO_RECORD]))
    try:
        fleet = learn(recording, slots=settings.slots, fits=settings.fits, keep=settings.keep)
    except ValueError as e:
        raise ValueError(f"{files[0]}: {e}; {HOW_TO_RECORD}") from e
    work = workload(recording, fleet, settings.load)
    results = {mode: Simulation(work, mode, settings.seed, patience=settings.patience).run() for mode in modes}
    return Report(recording, fleet, settings, as_recorded(recording, fleet), results, len(work.requests))


def parser() -> argparse.ArgumentParser:
    about, _, epilog = (__doc__ or "").partition("\n\n")
    result = argparse.ArgumentParser(prog="ollama-balancer lab", description=about, epilog=epilog)
    result.add_argument("files", metavar="FLOWFILE", nargs="+", type=Path, help="flows saved by mitmproxy with -w")
    result.add_argument(
        "--modes",
        type=_modes,
        default=list(POLICIES),
        help=f"modes to try, separated by commas: {', '.join(POLICIES)} (default: all)",
    )
    result.add_argument("--json", action="store_true", help="print JSON instead of tables")
    result.add_argument("--seed", type=int, default=1, help="random seed (default: %(default)s)")
    result.add_argument(
        "--load",
        type=_number(float, "a number above 0", lambda value: 0 < value < math.inf),
        default=1.0,
        metavar="TIMES",
        help="factor for the request rate: 1.5 for one and a half times as many requests per second (default: 1)",
    )
    result.add_argument(
        "--slots",
        type=_number(int, "a whole number from 1 to 1000", lambda value: 1 <= value <= 1000),
        default=0,
        metavar="N",
        help="requests that each host runs at once per model (default: as recorded, else inferred from the flows)",
    )
    result.add_argument(
        "--fits",
        type=_number(int, "a whole number from 1 to 1000", lambda value: 1 <= value <= 1000),
        default=0,
        metavar="N",
        help="models that each host keeps loaded at once (default: as recorded, else inferred from the flows)",
    )
    result.add_argument(
        "--keep-alive",
        type=_number(float, "seconds above 0", lambda value: 0 < value < math.inf),
        default=0.0,
        metavar="SECONDS",
        help="how long a host keeps an idle model loaded (default: 300, or longer if the flows show it)",
    )
    result.add_argument(
        "--patience",
        type=_number(float, "seconds from 1 to 86400", lambda value: 1 <= value <= 86_400),
        default=300.0,
        metavar="SECONDS",
        help="how long a client waits for its first token (default: %(default)g)",
    )
    return result


def _modes(text: str) -> list[str]:
    modes = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    unknown = [mode for mode in modes if mode not in POLICIES]
    if unknown or not modes:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'no mode'}: choose from {', '.join(POLICIES)}")
    return modes


def _number[T: (int, float)](kind: type[T], what: str, valid: Callable[[T], bool]) -> Callable[[str], T]:
    def number(text: str) -> T:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not valid(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return number


if __name__ == "__main__":
    raise SystemExit(main())
