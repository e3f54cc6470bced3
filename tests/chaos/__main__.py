"""The long form: python -m tests.chaos [--seed N] [--requests 2000] [--seconds 60] [--hosts 12] [--no-relay]."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--hosts", type=int, default=12)
    parser.add_argument("--no-relay", action="store_true", help="all chunks go through mitmproxy's layers")
    parser.add_argument("--keep", type=Path, help="a folder for the proxy's log")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(
            Path(folder),
            seed=given.seed,
            requests=given.requests,
            seconds=given.seconds,
            hosts=given.hosts,
            keep=given.keep,
            relay=not given.no_relay,
        )
    print(report)
    if report.broken:
        print(f"again: python -m tests.chaos --seed {given.seed} --requests {given.requests}", end=" ")
        print(f"--seconds {given.seconds:g} --hosts {given.hosts}{' --no-relay' if given.no_relay else ''}")
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
