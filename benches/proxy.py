"""What the balancer adds to a request and to a chunk: `python -m benches.proxy [--quick] [--streams] [--json FILE]`.

The same load goes to the upstream directly, through mitmdump as a plain reverse proxy, and through the balancer with
one agent and with four; streams also with one agent and without the relay. The sides take turns in every round. All of
it runs on 127.0.0.1, each in its own process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
ADDON = HERE.parent / "addon" / "balancer.py"
MITMDUMP = Path(sys.executable).parent / "mitmdump"

UPSTREAM_HOSTS = 4
CHUNKS_PER_SECOND = 50
START_SECONDS = 30.0

DIRECT, BARE = "direct", "mitmdump"

NO_INHERITANCE = ("LOAD_BALANCER_MODE", "OLLAMA_BALANCER_TOKEN", "OLLAMA_HOST")


@dataclass(frozen=True)
class Load:
    """`seconds` is its length in a full run."""

    kind: str
    number: int
    seconds: float

    @property
    def name(self) -> str:
        if self.kind == "requests":
            return f"{self.number} connection{'s' if self.number > 1 else ''}"
        return f"{self.number} streams"


LOADS = (
    Load("requests", 1, 3.0),
    Load("requests", 16, 4.0),
    Load("streams", 50, 3.0),
    Load("streams", 200, 4.0),
)


@dataclass(frozen=True)
class Side:
    """What the load goes to. `process` is the mitmdump that is between, if there is one."""

    name: str
    port: int
    process: psutil.Process | None


@dataclass
class Figures:
    """One side under one load: a figure for each round."""

    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    """Requests per second; nothing for streams."""
    cpu_us: list[float] = field(default_factory=list)
    """CPU time of mitmdump, microseconds a request or chunk; nothing for the direct side."""
    errors: int = 0


@contextmanager
def started(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, which is ended in any case."""
    env = {name: value for name, value in os.environ.items() if name not in NO_INHERITANCE} | environment
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=env,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sent)
                process.wait(5)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
            break
        process.communicate()


def call(port: int, path: str, body: object = None, token: str | None = None) -> int:
    """The status of an HTTP request to 127.0.0.1; 0 while nobody answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as e:
        return e.code
    except OSError:
        return 0


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args!r} did not start:\n{log.read_text()}")
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_mitmdump(
    stack: ExitStack,
    folder: Path,
    name: str,
    *arguments: str,
    token: str,
    asked: str = "/api/version",
    program: Path = MITMDUMP,
) -> Side:
    """A mitmdump, or one of its sisters, that has answered to the path `asked`."""
    port = free_port()
    log = folder / f"{name}.log"
    command = [str(program), "-q", "--listen-host", "127.0.0.1", "-p", str(port), "--set", "flow_detail=0"]
    command += ["--set", f"confdir={folder / name}", *arguments]
    process = stack.enter_context(started(command, log, OLLAMA_BALANCER_TOKEN=token))
    wait_until(lambda: call(port, asked) == 200, process, log)
    return Side(name, port, psutil.Process(process.pid))


def start_balancer(stack: ExitStack, folder: Path, upstream_ports: list[int], *, relay: bool = True) -> Side:
    count = len(upstream_ports)
    names = [f"agent-{number}" for number in range(count)]
    agents = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in zip(names, upstream_ports, strict=True))
    token = secrets.token_urlsafe(24)
    side = start_mitmdump(
        stack,
        folder,
        f"balancer, {count} agent{'s' if count > 1 else ''}{'' if relay else ', no relay'}",
        *("-s", str(ADDON), "--set", f"balancer_agents={agents}"),
        *("--set", "balancer_mode=metrics", "--set", "balancer_stale_after=86400"),
        *("--set", f"balancer_relay={str(relay).lower()}"),
        token=token,
    )
    # With fresh metrics, or the choice would be nothing but taking turns.
    now = datetime.now(UTC).isoformat()
    for number, name in enumerate(names):
        report = {"cpu_usage": 10.0 + number, "memory_usage": 40.0, "active_requests": 0, "timestamp": now}
        status = call(side.port, f"/api/agents/{name}/metrics", report, token)
        if status != 204:
            raise SystemExit(f"the balancer answered a report with {status}")
    return side


def check(side: Side) -> None:
    """A non-streamed chat is answered, whoever is between."""
    body = {"model": "bench:latest", "messages": [], "stream": False}
    status = call(side.port, "/api/chat", body)
    if status != 200:
        raise SystemExit(f"{side.name} answered a chat with {status}")


def cpu_seconds(side: Side) -> float:
    if side.process is None:
        return 0.0
    times = side.process.cpu_times()
    return float(times.user + times.system)


def run_load(side: Side, load: Load, seconds: float, figures: Figures) -> None:
    command = [sys.executable, str(HERE / "client.py"), str(side.port), load.kind, str(load.number), str(seconds)]
    if load.kind == "streams":
        command.append(str(CHUNKS_PER_SECOND))
    before = cpu_seconds(side)
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=seconds + 120, check=True)
    used = cpu_seconds(side) - before
    result = json.loads(done.stdout)
    figures.errors += result["errors"]
    if len(result["ms"]) < 2:
        return
    percentiles = quantiles(result["ms"], n=100, method="inclusive")
    figures.p50_ms.append(percentiles[49])
    figures.p99_ms.append(percentiles[98])
    if load.kind == "requests":
        figures.rate.append(result["rate"])
    if side.process is not None:
        figures.cpu_us.append(used / result["sent"] * 1e6)


def measure(folder: Path, rounds: int, scale: float, loads: Sequence[Load] = LOADS) -> dict[Load, dict[str, Figures]]:
    with ExitStack() as stack:
        log = folder / "upstream.log"
        command = [sys.executable, str(HERE / "upstream.py"), str(UPSTREAM_HOSTS)]
        upstream = stack.enter_context(started(command, log))
        assert upstream.stdout is not None
        line = upstream.stdout.readline()
        if not line:
            raise SystemExit(f"the upstream did not start:\n{log.read_text()}")
        ports: list[int] = json.loads(line)
        bare = ("--mode", f"reverse:http://127.0.0.1:{ports[0]}", "--set", "stream_large_bodies=1")
        sides = [
            Side(DIRECT, ports[0], None),
            start_mitmdump(stack, folder, BARE, *bare, token=""),
            start_balancer(stack, folder, ports[:1]),
            start_balancer(stack, folder, ports),
            start_balancer(stack, folder, ports[:1], relay=False),
        ]
        for side in sides:
            check(side)
        results = {load: {side.name: Figures() for side in sides} for load in loads}
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for load in loads:
                # Of requests that don't stream nothing is relayed.
                those = sides if load.kind == "streams" else sides[:-1]
                for at in range(len(those)):
                    side = those[(at + number) % len(those)]
                    run_load(side, load, load.seconds * scale, results[load][side.name])
        return results


def spread(values: list[float], digits: int) -> str:
    """The median over the rounds, and the lowest and highest."""
    if not values:
        return "–"
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def added(values: list[float], direct: list[float]) -> str:
    """What a round's figure has on top of the same round's direct one."""
    if len(values) != len(direct):
        return "–"
    return spread([value - base for value, base in zip(values, direct, strict=True)], 2)


def table(results: dict[Load, dict[str, Figures]], kind: str) -> str:
    what = "latency" if kind == "requests" else "delay"
    head = ["load", "side", f"{what} p50, ms", f"{what} p99, ms", "added p50, ms", "added p99, ms"]
    head += ["requests/s", "CPU, us a request"] if kind == "requests" else ["CPU, us a chunk"]
    lines = [head, ["---"] * len(head)]
    for load, sides in results.items():
        if load.kind != kind:
            continue
        direct = sides[DIRECT]
        for name, figures in sides.items():
            if not figures.p50_ms:
                continue
            row = [load.name, name, spread(figures.p50_ms, 2), spread(figures.p99_ms, 2)]
            if figures is direct:
                row += ["–", "–"]
            else:
                row += [added(figures.p50_ms, direct.p50_ms), added(figures.p99_ms, direct.p99_ms)]
            if kind == "requests":
                row.append(spread(figures.rate, 0))
            row.append(spread(figures.cpu_us, 0))
            lines.append(row)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> str:
    return (
        f"{cpu_model()}, {psutil.cpu_count()} cores, {platform.system()}; "
        f"{platform.python_implementation()} {platform.python_version()}, mitmproxy {version('mitmproxy')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.proxy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds, about half a minute")
    parser.add_argument("--streams", action="store_true", help="only the loads of streams")
    parser.add_argument("--rounds", type=int, help="rounds over all sides (default 4, with --quick 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's figures there")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 4)
    if rounds < 1:
        parser.error("--rounds takes 1 or more")

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, stop)
    with tempfile.TemporaryDirectory(prefix="bench-proxy-") as folder:
        loads = [load for load in LOADS if load.kind == "streams" or not arguments.streams]
        results = measure(Path(folder), rounds, 0.2 if arguments.quick else 1.0, loads)

    given = [option for option in ("quick", "streams") if getattr(arguments, option)]
    command = " ".join(["python -m benches.proxy", *(f"--{option}" for option in given)])
    print(f"{machine()}\n`{command}`: {rounds} rounds, median (lowest–highest round)\n")
    if not arguments.streams:
        print("A balanced request, not streamed, over kept-alive connections:\n")
        print(table(results, "requests"), end="\n\n")
    print(f"A streamed chunk, {CHUNKS_PER_SECOND} a second in each stream:\n")
    print(table(results, "streams"))
    if arguments.json is not None:
        write_json(arguments.json, results)
    errors = {f"{load.name}, {name}": f.errors for load, sides in results.items() for name, f in sides.items()}
    if any(errors.values()):
        raise SystemExit(f"not answered as it should: { {name: count for name, count in errors.items() if count} }")


def write_json(file: Path, results: dict[Load, dict[str, Figures]]) -> None:
    value: dict[str, Any] = {"machine": machine(), "loads": []}
    for load, sides in results.items():
        value["loads"].append({**asdict(load), "sides": {name: asdict(figures) for name, figures in sides.items()}})
    file.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
