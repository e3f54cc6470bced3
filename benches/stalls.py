"""How long one request, answer or report holds up a stream beside it, and what it takes:

    python -m benches.stalls [--before DIR] [--rounds N] [NAME ...]

For each input a real mitmdump (or mitmweb) is started, and in processes of their own the stream's host, which sends a
line each 10 ms, its client, and a host that answers what the input asks for. NAME is a part of an input's name, or its
kind. With `--before` the same is done, in turns, with another checkout of the project, and the tables have both.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import httpx

from benches.proxy import end_on_signals
from tests.e2e.beside import Cost, stream_beside, stream_host
from tests.e2e.harness import ROOT, TOKEN, command, environment, free_port, wait_until
from tests.e2e.hostile_host import host
from tests.e2e.hostile_inputs import INPUTS, Input, Site
from tests.e2e.web import PASSWORD


def _nothing(_: Site) -> bytes:
    time.sleep(3)
    return b""


SETTLE_SECONDS = 1.0
"""After which what is still taken of memory is taken for kept."""


@contextlib.contextmanager
def running(tree: Path, given: Input, host_ports: tuple[int, int], stream_url: str) -> Iterator[tuple[Site, int]]:
    """The balancer of that checkout, with two agents; its process's id."""
    site = Site(free_port(), free_port(), host_ports)
    options = [f"balancer_agents=one=http://127.0.0.1:{host_ports[0]},stream={stream_url}", f"balancer_token={TOKEN}"]
    if given.tool == "mitmweb":
        options += [f"web_password={PASSWORD}", f"web_port={site.web_port}", "web_open_browser=false"]
    arguments = [part for option in options for part in ("--set", option)]
    with tempfile.TemporaryDirectory() as folder:
        given.write(Path(folder))
        addon = tree / "addon" / "balancer.py"
        process = subprocess.Popen(
            command(Path(folder), site.port, *arguments, tool=given.tool, addon=addon),
            env=environment(PYTHONPATH=f"{addon.parent}:{tree}"),
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{site.port}", trust_env=False) as http:
                wait_until(
                    lambda: [a["status"] for a in http.get("/api/agents").json()["agents"]] == ["online"] * 2,
                    "both agents are online",
                )
            yield site, process.pid
        finally:
            process.kill()
            process.wait()


def measure(tree: Path, given: Input, host_ports: tuple[int, int], stream_url: str) -> tuple[Cost, tuple[float, bytes]]:
    """What it cost; the seconds that it took, and the first bytes of the answer."""
    with running(tree, given, host_ports, stream_url) as (site, pid), stream_beside(site.port, pid) as beside:
        given.prepare(site)
        time.sleep(1)
        beside.begin()
        began = time.monotonic()
        with contextlib.suppress(OSError, httpx.HTTPError):
            answer = given.act(site)
            seconds = time.monotonic() - began
            time.sleep(SETTLE_SECONDS)
            return beside.end(), (seconds, answer)
        return beside.end(), (time.monotonic() - began, b"         given up")


def spread(values: list[float], digits: int) -> str:
    """The median, and between brackets the lowest and the highest."""
    text = f"{median(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def row(name: str, sides: list[list[Cost]]) -> str:
    cells = [name]
    cells += [spread([1000 * cost.gap for cost in costs], 0) for costs in sides]
    cells += [spread([cost.cpu for cost in costs], 2) for costs in sides]
    cells += [spread([cost.peak / 1e6 for cost in costs], 0) for costs in sides]
    cells += [spread([cost.growth / 1e6 for cost in costs], 0) for costs in sides]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.stalls")
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names of inputs, or their kinds")
    parser.add_argument("--before", type=Path, help="another checkout of the project, to compare with")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    end_on_signals()
    trees = [options.before.resolve(), ROOT] if options.before else [ROOT]
    chosen = {"nothing, 3 s": Input("", _nothing)} | {
        name: given
        for name, given in INPUTS.items()
        if not options.names or any(wanted in name or wanted == given.kind for wanted in options.names)
    }
    ports = (free_port(), free_port())
    server = multiprocessing.get_context("spawn").Process(target=host, args=(ports,), daemon=True)
    server.start()
    figures = ["longest gap, ms", "CPU, s", "MB more, at most", "MB more, kept"]
    heads = [f"{figure}{side}" for figure in figures for side in ((": before", ": now") if len(trees) == 2 else ("",))]
    if len(trees) == 1:
        heads += ["seconds", "answer"]
    print(f"| input | {' | '.join(heads)} |\n|{'---|' * (1 + len(heads))}", flush=True)
    with stream_host() as stream_url:
        for name, given in chosen.items():
            sides: list[list[Cost]] = [[] for _ in trees]
            last: tuple[float, bytes] = (0.0, b"")
            for number in range(options.rounds):
                for side in range(len(trees))[:: 1 if number % 2 else -1]:
                    cost, last = measure(trees[side], given, ports, stream_url)
                    sides[side].append(cost)
            line = row(name, sides)
            print(
                line if len(trees) == 2 else f"{line} {last[0]:.2f} | {last[1][9:12].decode('latin-1')} |", flush=True
            )
    server.terminate()


if __name__ == "__main__":
    main()
