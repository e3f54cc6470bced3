"""What the reports of 1,000 agents cost: `python -m benches.reports [--quick] [--json FILE]`.

Every agent reports each 10 s, as its reporter does it: over a connection of its own for each report. The balancer is a
real mitmdump, which has streams to pass on at the same time. In every round these take turns: without reports, with
them, and with them over connections that are kept alive; then the same without streams. For comparison the reports also
go to a mitmdump without the balancer that answers each with 204.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles

from agent_reporter import http, push, wire
from benches.dashboard import address, serve
from benches.proxy import (
    CHUNKS_PER_SECOND,
    HERE,
    Figures,
    Load,
    Side,
    check,
    cpu_seconds,
    machine,
    run_load,
    spread,
    start_balancer,
    start_mitmdump,
    start_upstream,
)
from tests.e2e.harness import Hosts, free_port

AGENTS = 1000
INTERVAL = 10.0
"""Seconds between two reports of an agent."""

RATE = AGENTS / INTERVAL
STREAMS = 50
KEPT = 50
"""Connections that are kept alive; each carries the reports of many agents."""

TIMEOUT = 30.0
TARGET = 20.0
"""Percent of a core."""

NONE, OWN, ALIVE = "none", "a connection each", "kept-alive connections"
BARE = "a connection each, mitmdump without the balancer"

MODELS = (
    "llama3.2:latest",
    "llama3.3:70b-instruct-q4_K_M",
    "qwen3:latest",
    "qwen2.5-coder:32b",
    "gemma3:27b",
    "deepseek-r1:32b",
    "mistral-small:24b",
    "phi4:latest",
    "gpt-oss:20b",
    "nomic-embed-text:latest",
)
COLLECTORS = ("cpu", "load", "memory", "disk", "network", "server", "connections", "gpus", "ollama")
GIB = 1024**3


@dataclass
class Cost:
    """What one way to report came to beside one load: a figure for each round."""

    cpu: list[float] = field(default_factory=list)
    """Seconds of mitmdump's CPU in a second."""
    reports_cpu: list[float] = field(default_factory=list)
    """Of these, what the same round without reports did not take."""
    ms_a_report: list[float] = field(default_factory=list)
    answer_p50_ms: list[float] = field(default_factory=list)
    answer_p99_ms: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    chunks: Figures = field(default_factory=Figures)

    def add(self, cpu: float, seconds: float) -> None:
        """A round's CPU for the reports alone, in seconds."""
        self.reports_cpu.append(cpu / seconds)
        self.ms_a_report.append(cpu / round(seconds * RATE) * 1e3)


def report(chance: random.Random) -> bytes:
    """What a host with two GPUs and ten models reports, as its reporter writes it."""
    models = [
        wire.ModelEntry.model_validate(
            {
                "name": name,
                "model": name,
                "modified_at": "2026-01-31T12:00:00.123456789Z",
                "size": 19_851_337_809,
                "digest": "0123456789abcdef" * 4,
                "details": {
                    "parent_model": "",
                    "format": "gguf",
                    "family": "llama",
                    "families": ["llama"],
                    "parameter_size": "32.8B",
                    "quantization_level": "Q4_K_M",
                },
            }
        )
        for name in MODELS
    ]
    running = {"expires_at": "2026-01-31T12:05:00.123456789Z", "size_vram": 19_851_337_809, "context_length": 4096}
    gpus = [
        wire.GpuMetrics(
            name="NVIDIA GeForce RTX 4090",
            utilization=float(chance.randrange(100)),
            memory_used=chance.randrange(24 * GIB),
            memory_total=24 * GIB,
            temperature=float(chance.randrange(30, 80)),
            power=round(chance.uniform(20, 450), 1),
        )
        for _ in range(2)
    ]
    metrics = wire.AgentMetrics(
        cpu_usage=round(chance.uniform(1, 99), 1),
        memory_usage=round(chance.uniform(20, 95), 1),
        active_requests=0,
        timestamp=datetime.now(UTC),
        models=models,
        loaded_models=[models[0].model_copy(update=running)],
        gpus=gpus,
        ollama_version="0.12.0",
        ollama_ok=True,
        num_parallel=4,
        max_loaded_models=3,
        load_average=[round(chance.uniform(0, 8), 2) for _ in range(3)],
        cpu_count=32,
        disk_free=chance.randrange(1000 * GIB),
        disk_total=2000 * GIB,
        network_received=round(chance.uniform(0, 1e6), 1),
        network_sent=round(chance.uniform(0, 1e6), 1),
        collectors=[
            wire.CollectorOutcome(name=name, ok=True, seconds=round(chance.uniform(0, 0.01), 6)) for name in COLLECTORS
        ],
    )
    return push.encode(metrics)


class Fleet:
    """The reporters of all agents. One server listens where they say that their hosts are."""

    def __init__(self, port: int, token: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.token = token
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.chance = random.Random(5)
        self.paths: list[str] = []
        """Where each agent reports to."""
        self.next = 0
        """The agent whose turn it is."""

    async def join(self, host_port: int) -> None:
        for number in range(AGENTS):
            url = f"http://{address(number)}:{host_port}"
            body = json.dumps({"name": f"host-{number:04}", "url": url}).encode()
            answer = await self._call("/api/agents", body)
            if answer.status != 201:
                raise SystemExit(f"a registration was answered with {answer.status}: {answer.body!r}")
            self.paths.append(f"/api/agents/{json.loads(answer.body)['id']}/metrics")

    async def send(self, way: str, seconds: float, cost: Cost) -> None:
        """Send reports for that long, evenly spread."""
        if way == NONE:
            await asyncio.sleep(seconds)
            return
        total = round(seconds * RATE)
        taken: list[float] = []
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            kept = [KeptAlive(self) for _ in range(KEPT if way == ALIVE else 0)]
            for number in range(total):
                await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
                path = self.paths[self.next]
                self.next = (self.next + 1) % AGENTS
                body = report(self.chance)
                post = kept[number % KEPT].post if kept else self._post
                group.create_task(self._timed(post(path, body), taken, cost))
            await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
        for connection in kept:
            connection.close()
        percentiles = quantiles(taken, n=100, method="inclusive")
        cost.answer_p50_ms.append(percentiles[49] * 1e3)
        cost.answer_p99_ms.append(percentiles[98] * 1e3)

    async def _timed(self, posted: Awaitable[int], taken: list[float], cost: Cost) -> None:
        began = time.monotonic()
        try:
            status = str(await posted)
        except (http.CallError, TimeoutError, OSError, EOFError) as e:
            status = repr(e)
        taken.append(time.monotonic() - began)
        cost.statuses[status] += 1

    async def _post(self, path: str, body: bytes) -> int:
        return (await self._call(path, body)).status

    async def _call(self, path: str, body: bytes) -> http.Answer:
        return await http.call(
            "POST", self.url + path, content=body, headers=self.headers, timeout=TIMEOUT, limit=64 * 1024
        )


class KeptAlive:
    """A connection for many reports, one after the other."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.free = asyncio.Lock()
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> int:
        async with asyncio.timeout(TIMEOUT), self.free:
            host, _, port = self.fleet.url.removeprefix("http://").partition(":")
            if self.streams is None:
                self.streams = await asyncio.open_connection(host, int(port))
            reader, writer = self.streams
            fields = {"Host": f"{host}:{port}", "Content-Length": str(len(body)), **self.fleet.headers}
            head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")  # a 204 has no body
            return int(answer.split(b" ", 2)[1])

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()


async def turn(
    side: Side, fleet: Fleet, way: str, cost: Cost, seconds: float, upstream: int, *, streaming: bool
) -> float:
    """The CPU, in seconds, of one way to report; what comes late counts as well."""
    before = cpu_seconds(side)
    sent = asyncio.create_task(fleet.send(way, seconds, cost))
    if streaming:
        await asyncio.to_thread(run_load, side, Load("streams", STREAMS, seconds), seconds, upstream, cost.chunks)
    await sent
    used = cpu_seconds(side) - before
    cost.cpu.append(used / seconds)
    return used


def measure(folder: Path, rounds: int, seconds: float) -> dict[tuple[bool, str], Cost]:
    results = {(streaming, way): Cost() for streaming in (True, False) for way in (NONE, OWN, ALIVE)}
    results[False, BARE] = Cost()
    with ExitStack() as stack:
        token = secrets.token_urlsafe(24)
        ports, upstream = start_upstream(stack, folder, 1)
        side = start_balancer(stack, folder, "balancer", ports, token=token)
        check(side)
        fleet = Fleet(side.port, token)
        hosts, host_port = Hosts(), free_port()
        stack.callback(hosts.stop)
        server = hosts.run(asyncio.start_server(serve, [address(number) for number in range(AGENTS)], host_port))
        stack.callback(hosts.loop.call_soon_threadsafe, server.close)
        asyncio.run(fleet.join(host_port))
        script = ("-s", str(HERE / "no_content.py"), "--mode", "reverse:http://127.0.0.1:1")
        lazy = ("--set", "connection_strategy=lazy")
        bare = start_mitmdump(stack, folder, "mitmdump", *script, *lazy, token="", status=204)
        others = Fleet(bare.port, token)
        others.paths = fleet.paths
        print(f"{AGENTS} agents have registered; their first reports", file=sys.stderr, flush=True)
        warm_up = Cost()
        for way in (OWN, ALIVE):
            asyncio.run(fleet.send(way, INTERVAL, warm_up))
        asyncio.run(others.send(OWN, 1.0, warm_up))
        not_taken(warm_up)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for streaming in (True, False):
                ways = [NONE, OWN, ALIVE]
                used = {}
                for way in ways[number % 3 :] + ways[: number % 3]:
                    cost = results[streaming, way]
                    used[way] = asyncio.run(turn(side, fleet, way, cost, seconds, upstream, streaming=streaming))
                for way in (OWN, ALIVE):
                    results[streaming, way].add(used[way] - used[NONE], seconds)
            cost = results[False, BARE]
            cost.add(asyncio.run(turn(bare, others, BARE, cost, seconds, upstream, streaming=False)), seconds)
    return results


def not_taken(cost: Cost) -> None:
    """End with an error if a report was answered with anything but 204, or a stream was not whole."""
    wrong = {status: count for status, count in cost.statuses.items() if status != "204"}
    if wrong:
        raise SystemExit(f"reports that were not answered with 204: {wrong}")
    if cost.chunks.errors:
        raise SystemExit(f"{cost.chunks.errors} streams were not whole")


def percent(values: list[float]) -> str:
    return spread([100 * value for value in values], 1)


def table(results: dict[tuple[bool, str], Cost]) -> str:
    head = ["beside", "reports", "mitmdump's CPU, % of a core", "of it for the reports, %", "CPU of a report, ms"]
    head += ["answer p50, ms", "answer p99, ms", "chunk's delay p50, ms", "chunk's delay p99, ms"]
    lines = [head, ["---"] * len(head)]
    for (streaming, way), cost in results.items():
        beside = f"{STREAMS} streams" if streaming else "nothing"
        row = [beside, way, percent(cost.cpu), percent(cost.reports_cpu) if way != NONE else "–"]
        row += [spread(cost.ms_a_report, 2), spread(cost.answer_p50_ms, 1), spread(cost.answer_p99_ms, 1)]
        row += [spread(cost.chunks.p50_ms, 2), spread(cost.chunks.p99_ms, 1)]
        lines.append(row)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.reports", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds, about a minute")
    parser.add_argument("--rounds", type=int, help="rounds over all turns (default 5, with --quick 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's figures there")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    if rounds < 1:
        parser.error("--rounds takes 1 or more")
    with tempfile.TemporaryDirectory(prefix="bench-reports-") as folder:
        results = measure(Path(folder), rounds, 3.0 if arguments.quick else INTERVAL)
    size = len(report(random.Random(5)))
    print(f"{machine()}\n{rounds} rounds, median (lowest–highest round)\n")
    print(
        f"{AGENTS} agents, {RATE:g} reports a second of {size} bytes with {len(MODELS)} models; "
        f"streams of {CHUNKS_PER_SECOND} chunks a second:\n"
    )
    print(table(results))
    print(f"\nThe target is at most {TARGET:g} % of a core for the reports over a connection each.")
    if arguments.json is not None:
        rows = [{"streaming": s, "reports": way, **asdict(cost)} for (s, way), cost in results.items()]
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    for cost in results.values():
        not_taken(cost)


if __name__ == "__main__":
    main()
