"""The long form: python -m tests.fuzz [readers | proxy] [--seconds 60] [--seed N] [--cases N [--first K]]."""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from hypothesis import settings

from tests.fuzz.proxy import run
from tests.fuzz.targets import LIMITS, TARGETS


def fuzz_readers(seed: int, seconds: float) -> bool:
    """Whether nothing was wrong. What is found wrong is tried no more."""
    deadline, left, tried = time.monotonic() + seconds, dict(TARGETS), 0
    for round_ in itertools.count():
        for name, target in list(left.items()):
            if time.monotonic() > deadline or not left:
                print(f"readers: {tried} inputs, {len(TARGETS) - len(left)} of {len(TARGETS)} readers failed")
                return len(left) == len(TARGETS)
            try:
                target.run(settings(LIMITS, max_examples=target.examples), seed + round_)
                tried += target.examples
            except Exception as e:
                for each in e.exceptions if isinstance(e, ExceptionGroup) else (e,):
                    traceback.print_exception(each, limit=-2, chain=False)
                del left[name]
    return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("readers", "proxy", "all"), default="all")
    parser.add_argument("--seconds", type=float, default=60.0, help="in all")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--cases", type=int, help="so many for the proxy, and no more")
    parser.add_argument("--first", type=int, default=0, help="the number of the first of them")
    given = parser.parse_args()
    print(f"seed {given.seed}")
    seconds = given.seconds / 2 if given.what == "all" else given.seconds
    well = given.what == "proxy" or fuzz_readers(given.seed, seconds)
    if given.what != "readers":
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(run(Path(folder), seed=given.seed, cases=given.cases, seconds=seconds, first=given.first))
            except AssertionError as e:
                print(e)
                well = False
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
