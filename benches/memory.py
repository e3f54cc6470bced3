"""What the balancer takes of memory: `python -m benches.memory [--quick] [--only WORD]`.

Real mitmdumps and a real mitmweb with the balancer, whose resident memory (RSS) is read while streams are open,
requests wait, agents have reported and flows are kept. Each figure is a difference over hundreds of them, in a process
that was started for it. Clients and hosts are in processes of their own. All of it runs on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benches.proxy import (
    ADDON,
    BARE,
    HERE,
    MITMDUMP,
    Side,
    allow_open_files,
    call,
    end_on_signals,
    free_port,
    machine,
    spread,
    start_mitmdump,
    start_upstream,
    started,
)
from benches.upstream import MODEL

CHUNKS = 20
"""Of each open stream, before it is measured: some 3 kB."""

CHAT_CHUNKS = 60
"""Of a short chat's answer: some 8 kB."""

WARM_UP = 20
"""Streams and agents that come and go before: what is loaded and allocated once is not to be counted."""

MODELS = 10
"""Of each agent."""

KNOWN_MODELS = 40
"""Of which the agents have theirs."""

TARGET_MB = 400.0
WHOLE_STREAMS, WHOLE_AGENTS = 2_000, 1_000

SETTLE_SECONDS = 15.0

SPARE_DESCRIPTORS = 200
"""Of a process, beside those of its streams."""


@dataclass
class Figures:
    """What was measured of one number of things: a figure for each round."""

    bytes_each: list[float] = field(default_factory=list)
    """By how much the memory had grown since there were fewer, for each one more."""
    rss: list[float] = field(default_factory=list)
    """Bytes of the whole process."""


Results = dict[str, dict[int, Figures]]
"""By what was there, and how many of it."""


def grown(readings: dict[int, int]) -> dict[int, float]:
    """Bytes of each one more: from the memory with so many of them, less that with the next fewer."""
    numbers = sorted(readings)
    return {more: (readings[more] - readings[fewer]) / (more - fewer) for fewer, more in pairwise(numbers)}


def rows(results: Results) -> list[list[str]]:
    lines = []
    for what, numbers in results.items():
        for number, figures in numbers.items():
            each = spread([value / 1e3 for value in figures.bytes_each], 1)
            count = f"{number:,}" if figures.bytes_each else "–"
            lines.append([what, count, each, spread([rss / 1e6 for rss in figures.rss], 1)])
    return lines


def table(results: Results) -> str:
    head = ["what", "number", "kB each one more", "RSS of the process, MB"]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---", "---:", "---:", "---:"], *rows(results)])


def allow_descriptors(needed: int) -> None:
    """Raise the limit of open files, which the processes that are started inherit."""
    allowed = allow_open_files(needed)
    if allowed < needed:
        raise SystemExit(
            f"a process may open {allowed} files here, and mitmdump needs {needed}: raise the hard limit "
            "(ulimit -Hn), or run with --quick"
        )


def settled_rss(side: Side) -> int:
    """The resident memory, once it no longer changes by itself."""
    assert side.process is not None
    deadline = time.monotonic() + SETTLE_SECONDS
    readings = [int(side.process.memory_info().rss)]
    while time.monotonic() < deadline:
        time.sleep(0.5)
        readings.append(int(side.process.memory_info().rss))
        if len(readings) >= 5 and max(readings[-5:]) - min(readings[-5:]) < 100_000:
            break
    return readings[-1]


class Clients:
    """A process of clients, which open streams when they are told to."""

    def __init__(self, stack: ExitStack, folder: Path, port: int) -> None:
        command = [sys.executable, str(HERE / "open_streams.py"), str(port)]
        self._log = folder / "clients.log"
        self._process = stack.enter_context(started(command, self._log))

    def open(self, count: int, chunks: int, until: str) -> int:
        """How many are open then."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"count": count, "chunks": chunks, "until": until}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the clients ended:\n{self._log.read_text()}")
        answer = json.loads(line)
        if answer["errors"]:
            raise SystemExit(f"{answer['errors']} streams were not answered as they should: {answer['said']!r}")
        return int(answer["open"])

    def end(self, chunks: int) -> None:
        self.open(0, chunks, "end")


class Fleet:
    """One process that listens at the ports of many hosts."""

    def __init__(self, stack: ExitStack, folder: Path, hosts: int) -> None:
        self.ports, _ = start_upstream(stack, folder, hosts)

    def hold(self) -> None:
        """Streams end no more."""
        self._tell("/hold")

    def release(self) -> None:
        self._tell("/release")

    def _tell(self, path: str) -> None:
        if call(self.ports[0], path, {}) != 200:
            raise SystemExit("the upstream does not answer")


@dataclass(frozen=True)
class Place:
    """A balancer, and who is around it."""

    side: Side
    fleet: Fleet
    clients: Clients
    http: httpx.Client
    token: dict[str, str]

    def warm_up(self) -> None:
        self.clients.open(WARM_UP, CHUNKS, "end")
        self.clients.end(CHUNKS)

    def add_agents(self, first: int, last: int) -> None:
        """Have them register and report, twice, as they would every few seconds."""
        for number in range(first, last):
            name = f"host-{number:04}"
            self._post("/api/agents", {"name": name, "url": f"http://127.0.0.1:{self.fleet.ports[number]}"})
        for _ in range(2):
            for number in range(first, last):
                self._post(f"/api/agents/host-{number:04}/metrics", report(number))
        expect(self.state()["agents"]["online"], last, "agents are online")

    def state(self) -> dict[str, Any]:
        answer = self.http.get("/api/balancer").raise_for_status()
        return dict(answer.json())

    def _post(self, path: str, body: dict[str, Any]) -> None:
        self.http.post(path, json=body, headers=self.token).raise_for_status()


def entry(number: int, agent: int) -> dict[str, Any]:
    """A model as Ollama lists it; each host has fetched it at another time."""
    name = MODEL if number == 0 else f"model-{number}:32b-instruct-q4_K_M"
    return {
        "name": name,
        "model": name,
        "modified_at": f"2026-01-31T12:{agent // 60 % 60:02}:{agent % 60:02}.{number:09}Z",
        "size": 19_851_337_809 + number,
        "digest": f"{number:064x}",
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": "qwen2",
            "families": ["qwen2"],
            "parameter_size": "32.8B",
            "quantization_level": "Q4_K_M",
        },
    }


def report(agent: int) -> dict[str, Any]:
    """What a host with two GPUs says. All hosts have the model that is asked for, and have it in memory."""
    others = [1 + (agent + number) % (KNOWN_MODELS - 1) for number in range(MODELS - 1)]
    entries = [entry(number, agent) for number in (0, *others)]
    loaded = [each | {"expires_at": "2026-01-31T12:05:00Z", "size_vram": 4_000_000_000} for each in entries[:2]]
    gpu = {"name": "NVIDIA GeForce RTX 4090", "utilization": 37.0, "memory_used": 9 * 1024**3}
    gpu |= {"memory_total": 24 * 1024**3, "temperature": 61.0, "power": 287.4}
    return {
        "cpu_usage": 12.5 + agent % 50,
        "memory_usage": 40.0,
        "active_requests": 0,
        "timestamp": datetime.now(UTC).isoformat(),
        "models": entries,
        "loaded_models": loaded,
        "gpus": [gpu, gpu],
        "ollama_version": "0.33.0",
        "num_parallel": 8,
        "max_loaded_models": 3,
        "ollama_ok": True,
        "load_average": [0.5, 0.6, 0.7],
        "cpu_count": 32,
        "disk_free": 10**12,
        "disk_total": 2 * 10**12,
        "network_received": 12345.6,
        "network_sent": 23456.7,
    }


@contextmanager
def running(*options: str, hosts: int = 1, agents: int = 1, bare: bool = False, web: bool = False) -> Iterator[Place]:
    """A balancer to which the first `agents` of the hosts have reported, or a mitmdump without it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-memory-")))
        fleet = Fleet(stack, folder, hosts)
        token = secrets.token_urlsafe(24)
        if bare:
            arguments = ["--mode", f"reverse:http://127.0.0.1:{fleet.ports[0]}", "--set", "stream_large_bodies=1"]
        else:
            # Reports do not grow old, so that nobody is asked for whether he is there while the memory is measured.
            arguments = ["-s", str(ADDON), "--set", "balancer_stale_after=86400", *options]
        asked = "/api/version" if bare else "/api/balancer"
        side = start(stack, folder, web, *arguments, token=token, asked=asked)
        http = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{side.port}", timeout=60, trust_env=False))
        place = Place(side, fleet, Clients(stack, folder, side.port), http, {"Authorization": f"Bearer {token}"})
        if not bare:
            place.add_agents(0, agents)
        yield place


def start(stack: ExitStack, folder: Path, web: bool, *arguments: str, token: str, asked: str) -> Side:
    if not web:
        return start_mitmdump(stack, folder, "mitmdump", *arguments, token=token, asked=asked)
    own = ("--no-web-open-browser", "--web-port", str(free_port()), "--set", "web_password=bench")
    return start_mitmdump(
        stack, folder, "mitmweb", *own, *arguments, token=token, asked=asked, program=MITMDUMP.with_name("mitmweb")
    )


def streams(numbers: list[int], *options: str, bare: bool = False) -> dict[int, int]:
    """The memory with so many open streams."""
    with running("--set", "balancer_slots=10000", bare=bare) as place:
        place.warm_up()
        place.fleet.hold()
        readings = {0: settled_rss(place.side)}
        there = 0
        for number in numbers:
            there = expect(place.clients.open(number - there, CHUNKS, "chunks"), number, "streams are open")
            readings[number] = settled_rss(place.side)
        place.fleet.release()
        place.clients.end(CHUNKS)
        return readings


def waiting(numbers: list[int]) -> dict[int, int]:
    """The memory with so many requests in the line."""
    slots = 8
    with running(
        "--set", f"balancer_slots={slots}", "--set", "balancer_queue_size=100000", "--set", "balancer_queue_timeout=900"
    ) as place:
        place.warm_up()
        place.fleet.hold()
        place.clients.open(slots, CHUNKS, "chunks")
        readings = {0: settled_rss(place.side)}
        there = 0
        for number in numbers:
            place.clients.open(number - there, CHUNKS, "sent")
            deadline = time.monotonic() + 60
            while (there := place.state()["waiting"]) < number and time.monotonic() < deadline:
                time.sleep(0.2)
            expect(there, number, "requests wait")
            readings[number] = settled_rss(place.side)
        place.fleet.release()
        place.clients.end(CHUNKS)
        return readings


def agents(numbers: list[int]) -> dict[int, int]:
    """The memory with so many agents that have reported."""
    with running(hosts=WARM_UP + numbers[-1], agents=WARM_UP) as place:
        readings = {0: settled_rss(place.side)}
        there = 0
        for number in numbers:
            place.add_agents(WARM_UP + there, WARM_UP + number)
            there = number
            readings[number] = settled_rss(place.side)
        return readings


def flows(numbers: list[int]) -> dict[int, int]:
    """The memory with so many flows in mitmweb's list."""
    with running(
        "--set", "balancer_slots=100", "--set", f"balancer_keep_flows={WARM_UP + numbers[-1]}", web=True
    ) as place:
        place.clients.open(WARM_UP, CHAT_CHUNKS, "end")
        readings = {0: settled_rss(place.side)}
        there = 0
        for number in numbers:
            place.clients.open(number - there, CHAT_CHUNKS, "end")
            there = number
            readings[number] = settled_rss(place.side)
        return readings


def whole(number: int, fleet: int) -> int:
    """The memory with so many streams and agents at the same time."""
    with running(hosts=fleet, agents=fleet) as place:
        place.warm_up()
        place.fleet.hold()
        expect(place.clients.open(number, CHUNKS, "chunks"), number, "streams are open")
        rss = settled_rss(place.side)
        place.fleet.release()
        place.clients.end(CHUNKS)
        return rss


def expect(there: int, number: int, what: str) -> int:
    if there != number:
        raise SystemExit(f"{there} {what}, not {number}")
    return there


def measure(rounds: int, quick: bool, only: str) -> Results:
    part = 10 if quick else 1
    many = [number // part for number in (500, 1_000, 2_000)]
    wholes = (WHOLE_STREAMS // part, WHOLE_AGENTS // part)
    measurements: dict[str, Callable[[], dict[int, int]]] = {
        "open stream, relayed": lambda: streams(many),
        "open stream, `balancer_relay=false`": lambda: streams(many, "--set", "balancer_relay=false"),
        f"open stream, {BARE} without the balancer": lambda: streams(many, bare=True),
        "waiting request": lambda: waiting(many[1:]),
        f"agent with {MODELS} models": lambda: agents(many[:2]),
        "flow kept by mitmweb": lambda: flows(many[1:]),
        f"{wholes[0]:,} open streams and {wholes[1]:,} agents": lambda: {1: whole(*wholes)},
    }
    chosen = {what: measured for what, measured in measurements.items() if only in what}
    if not chosen:
        raise SystemExit(f"--only takes a word of: {'; '.join(measurements)}")
    results: Results = {what: {} for what in chosen}
    for turn in range(rounds):
        for what, measured in chosen.items():
            print(f"round {turn + 1} of {rounds}: {what}", file=sys.stderr, flush=True)
            readings = measured()
            each = grown(readings)
            for number, rss in readings.items():
                if number:
                    figures = results[what].setdefault(number, Figures())
                    figures.rss.append(rss)
                    if number in each:
                        figures.bytes_each.append(each[number])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.memory", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round with a tenth of everything")
    parser.add_argument("--rounds", type=int, help="rounds over all measurements (default 3, with --quick 1)")
    parser.add_argument("--only", default="", metavar="WORD", help="only what has that word in its row of the table")
    chosen = parser.parse_args()
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    if rounds < 1:
        parser.error("--rounds takes 1 or more")

    end_on_signals()
    allow_descriptors(2 * (WHOLE_STREAMS // (10 if chosen.quick else 1)) + SPARE_DESCRIPTORS)
    results = measure(rounds, chosen.quick, chosen.only)
    command = f"python -m benches.memory{' --quick' if chosen.quick else ''}"
    print(f"{machine()}\n`{command}`: {rounds} round{'s' if rounds > 1 else ''}, median (lowest–highest)\n")
    print(table(results))
    for what, numbers in results.items():
        if "streams and" in what and not chosen.quick:
            rss = median(numbers[1].rss) / 1e6
            print(f"\n{what}: {rss:.0f} MB, the target is under {TARGET_MB:.0f} MB")


if __name__ == "__main__":
    main()
