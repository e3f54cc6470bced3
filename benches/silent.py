"""What hosts that accept and never answer do to those that live: python -m benches.silent [--before DIR]

A real mitmdump with 100 hosts that answer and 900 or 1,500 that do not, all static agents. From 15 s after the start it
is asked each half second how many of the living are online, and a prompt is sent each 100 ms. Then 1,000 more silent
ones are registered. The living, the silent and the clients are in processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import subprocess
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import psutil

from benches.proxy import allow_open_files, end_on_signals
from tests.e2e.beside import stream_beside, stream_host
from tests.e2e.harness import ROOT, TOKEN, command, environment, free_port, wait_until

LIVING, REGISTERED = 100, 1000
WARM_UP_SECONDS, SECONDS = 15.0, 30.0


async def _live(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(int(lengths[0][15:]) if lengths else 0)
            answer = b'{"models":[{"name":"m"}],"version":"0.33.0","response":"x","done":true}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(answer), answer))


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        await reader.read(-1)


def _hosts(count: int, living: bool, told: Connection) -> None:
    """So many hosts; tells their ports."""

    async def run() -> None:
        serve = _live if living else _silent
        servers = [await asyncio.start_server(serve, "127.0.0.1", 0, backlog=8) for _ in range(count)]
        told.send([server.sockets[0].getsockname()[1] for server in servers])
        await asyncio.Event().wait()

    allow_open_files(30_000)
    asyncio.run(run())


def started(count: int, living: bool) -> tuple[multiprocessing.process.BaseProcess, list[int]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hosts, args=(count, living, theirs), daemon=True)
    process.start()
    return process, ours.recv()


def measure(tree: Path, living: list[int], silent: list[int], more: list[int]) -> str:
    """The cells of a row."""
    agents = [f"live-{port}=http://127.0.0.1:{port}" for port in living]
    agents += [f"silent-{port}=http://127.0.0.1:{port}" for port in silent]
    port, addon = free_port(), tree / "addon" / "balancer.py"
    with tempfile.TemporaryDirectory() as folder, stream_host() as stream, contextlib.ExitStack() as stack:
        options = (f"balancer_token={TOKEN}", f"balancer_agents={','.join([*agents, f'stream={stream}'])}")
        mitmdump = stack.enter_context(
            subprocess.Popen(
                command(Path(folder), port, "--set", options[0], "--set", options[1], addon=addon),
                env=environment(PYTHONPATH=f"{addon.parent}:{tree}"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        stack.callback(mitmdump.kill)
        authority = {"Authorization": f"Bearer {TOKEN}"}
        http = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=authority, timeout=10))
        wait_until(lambda: http.get("/health"), "it listens")
        time.sleep(WARM_UP_SECONDS)
        beside = stack.enter_context(stream_beside(port, mitmdump.pid))
        online: list[int] = []
        statuses: Counter[str] = Counter()
        beside.begin()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            states = [a["status"] for a in http.get("/api/agents").json()["agents"] if a["name"].startswith("live")]
            online.append(states.count("online"))
            for _ in range(5):
                time.sleep(0.1)
                with contextlib.suppress(httpx.TimeoutException):
                    body = {"model": "m", "prompt": "x", "stream": False}
                    statuses[str(http.post("/api/generate", json=body).status_code)] += 1
                    continue
                statuses["none in 10 s"] += 1
        cost = beside.end()
        process = psutil.Process(mitmdump.pid)
        before = most = process.num_fds()
        for number in more:
            http.post("/api/agents", json={"name": f"more-{number}", "url": f"http://127.0.0.1:{number}"})
            most = max(most, process.num_fds())
        figures = (100 * statuses["200"] / statuses.total(), 1000 * cost.gap, 100 * cost.cpu / cost.seconds)
        return f"{min(online)} | {' | '.join(f'{figure:.0f}' for figure in figures)} | {before}, {most}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.silent")
    parser.add_argument("--before", type=Path, help="another checkout of the project, to compare with")
    options = parser.parse_args()
    end_on_signals()
    allow_open_files(30_000)
    trees = {"before": options.before.resolve(), "now": ROOT} if options.before else {"now": ROOT}
    print(
        "| silent | side | living online, at least | prompts served, % | longest gap, ms | CPU, % of a core | ", end=""
    )
    print(f"descriptors, and while {REGISTERED:,} register |\n|---|---|---|---|---|---|---|", flush=True)
    for count in (900, 1500):
        for side, tree in trees.items():
            (live, living), (dead, silent) = started(LIVING, living=True), started(count + REGISTERED, living=False)
            processes = [live, dead]
            try:
                print(f"| {count:,} | {side} | {measure(tree, living, silent[:count], silent[count:])} |", flush=True)
            finally:
                for process in processes:
                    process.kill()
                    process.join()


if __name__ == "__main__":
    main()
