"""What a proxy adds to a request and to a chunk: `python -m benches.proxy [--quick] [--streams] [--json FILE]`.

The same load goes to the upstream directly, through a program that does nothing but pass bytes on, through mitmdump as
a plain reverse proxy, through the balancer with one agent, with four and without its shortcuts, and through nginx and
LiteLLM where they are installed. The sides take turns in every round. All of it runs on 127.0.0.1, each in its own
process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import secrets
import select
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

from . import client, litellm, nginx

HERE = Path(__file__).resolve().parent
ADDON = HERE.parent / "addon" / "balancer.py"
MITMDUMP = Path(sys.executable).parent / "mitmdump"

UPSTREAM_HOSTS = 4
CHUNKS_PER_SECOND = 50
START_SECONDS = 30.0

DIRECT, FORWARDER, BARE = "direct", "forwarder", "mitmdump"
ONE, FOUR, PLAIN = "balancer, 1 agent", "balancer, 4 agents", "balancer, 1 agent, no relay, not lean"
NGINX, LITELLM = "nginx", "LiteLLM"
NO_SHORTCUTS = ("--set", "balancer_relay=false", "--set", "balancer_lean=false")

PATIENCE_SECONDS = 3.0
"""How late the streams of a load may be before they are cut."""

STREAMS_BEGUN_PER_SECOND = 200
LONGEST_RAMP = 2.0
"""Seconds. Beginning a stream costs as much as many chunks do, and people do not come all at once."""

OPEN_FILES = 8192

SETTLE_SECONDS = 10.0

LITELLM_STREAMS = 100
"""It has long fallen behind with as many."""

NO_INHERITANCE = ("LOAD_BALANCER_MODE", "OLLAMA_BALANCER_TOKEN", "OLLAMA_HOST", "PYTHONDONTWRITEBYTECODE")


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

    @property
    def ramp(self) -> float:
        """Within how many seconds the streams begin."""
        return min(max(0.5, self.number / STREAMS_BEGUN_PER_SECOND), LONGEST_RAMP)

    def length(self, scale: float) -> float:
        """Its seconds in a run of that scale: streams have to be longer than it takes to begin all of them."""
        return self.seconds * scale if self.kind == "requests" else max(self.seconds * scale, self.ramp + 1)


LOADS = (
    Load("requests", 1, 1.5),
    Load("requests", 16, 2.0),
    Load("streams", 50, 2.5),
    Load("streams", 100, 2.5),
    Load("streams", 200, 3.0),
    Load("streams", 400, 3.5),
    Load("streams", 800, 3.5),
)
QUICK = frozenset({1, 16, 50, 400})
"""The loads of a quick run, by their numbers."""


@dataclass(frozen=True)
class Side:
    """What the load goes to. `process` is the proxy that is between, if there is one."""

    name: str
    port: int
    process: psutil.Process | None
    api: str = "ollama"
    key: str | None = None
    most_streams: int | None = None

    @property
    def pids(self) -> list[int]:
        if self.process is None:
            return []
        return [self.process.pid, *(child.pid for child in self.process.children(recursive=True))]

    def takes(self, load: Load) -> bool:
        return load.kind == "requests" or self.most_streams is None or load.number <= self.most_streams


@dataclass
class Figures:
    """One side under one load: a figure for each round."""

    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    """Requests per second; nothing for streams."""
    cpu_us: list[float] = field(default_factory=list)
    """CPU time of the proxy, microseconds a request or chunk; nothing for the direct side."""
    own_us: list[float] = field(default_factory=list)
    """What the balancer says that it spent itself, microseconds a request."""
    steady_us: list[float | None] = field(default_factory=list)
    """CPU time of the proxy, microseconds a chunk, while all streams ran; None in a round in which they never did."""
    kept_up: list[float] = field(default_factory=list)
    """Percent of the chunks due while all streams ran that came then."""
    upstream: list[float] = field(default_factory=list)
    client: list[float] = field(default_factory=list)
    """What these two took meanwhile, percent of a core."""
    cut: int = 0
    """Rounds in which streams were cut, because they were too late."""
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
    return fetch(port, path, body, token)[0]


def fetch(port: int, path: str, body: object = None, token: str | None = None) -> tuple[int, str]:
    """The status and the text of the answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as response:
            return int(response.status), response.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, ""
    except OSError:
        return 0, ""


def wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[str], log: Path, seconds: float = START_SECONDS
) -> None:
    deadline = time.monotonic() + seconds
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
    status: int = 200,
    program: Path = MITMDUMP,
) -> Side:
    """A mitmdump, or one of its sisters, that has answered to the path `asked` with `status`."""
    port = free_port()
    log = folder / f"{name}.log"
    command = [str(program), "-q", "--listen-host", "127.0.0.1", "-p", str(port), "--set", "flow_detail=0"]
    command += ["--set", f"confdir={folder / name}", *arguments]
    process = stack.enter_context(started(command, log, OLLAMA_BALANCER_TOKEN=token))
    wait_until(lambda: call(port, asked) == status, process, log)
    return Side(name, port, psutil.Process(process.pid))


def start_upstream(stack: ExitStack, folder: Path, hosts: int) -> tuple[list[int], int]:
    """The ports of its hosts, and the number of the process that they are."""
    log = folder / "upstream.log"
    upstream = stack.enter_context(started([sys.executable, str(HERE / "upstream.py"), str(hosts)], log))
    assert upstream.stdout is not None
    line = upstream.stdout.readline()
    if not line:
        raise SystemExit(f"the upstream did not start:\n{log.read_text()}")
    ports: list[int] = json.loads(line)
    return ports, upstream.pid


def start_balancer(
    stack: ExitStack,
    folder: Path,
    name: str,
    upstream_ports: list[int],
    *,
    options: Sequence[str] = (),
    token: str | None = None,
) -> Side:
    names = [f"agent-{number}" for number in range(len(upstream_ports))]
    agents = ",".join(f"{agent}=http://127.0.0.1:{port}" for agent, port in zip(names, upstream_ports, strict=True))
    token = token or secrets.token_urlsafe(24)
    side = start_mitmdump(
        stack,
        folder,
        name,
        *("-s", str(ADDON), "--set", f"balancer_agents={agents}"),
        *("--set", "balancer_mode=metrics", "--set", "balancer_stale_after=86400"),
        # Else the balancer finds out how many requests an agent runs at once, and has the others wait meanwhile.
        *("--set", "balancer_slots=5000"),
        *options,
        token=token,
    )
    # With fresh metrics, or the choice would be nothing but taking turns.
    now = datetime.now(UTC).isoformat()
    for number, agent in enumerate(names):
        report = {"cpu_usage": 10.0 + number, "memory_usage": 40.0, "active_requests": 0, "timestamp": now}
        status = call(side.port, f"/api/agents/{agent}/metrics", report, token)
        if status != 204:
            raise SystemExit(f"the balancer answered a report with {status}")
    return side


def start_forwarder(stack: ExitStack, folder: Path, upstream_port: int) -> Side:
    log = folder / "forwarder.log"
    command = [sys.executable, str(HERE / "forwarder.py"), str(upstream_port)]
    process = stack.enter_context(started(command, log))
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"the forwarder did not start:\n{log.read_text()}")
    return Side(FORWARDER, int(line), psutil.Process(process.pid))


def start_nginx(stack: ExitStack, folder: Path, program: str, upstream_ports: list[int]) -> Side:
    port, place = free_port(), folder / "nginx"
    place.mkdir()
    file, log = place / "nginx.conf", place / "log"
    file.write_text(nginx.configuration(port, place, upstream_ports, keepalive=True))
    process = stack.enter_context(started(nginx.command(program, place, file), log))
    wait_until(lambda: call(port, "/api/version") == 200, process, log)
    return Side(NGINX, port, psutil.Process(process.pid))


def start_litellm(stack: ExitStack, folder: Path, program: str, upstream_ports: list[int]) -> Side:
    port, place, key = free_port(), folder / "litellm", f"sk-{secrets.token_urlsafe(32)}"
    place.mkdir()
    deployments = [litellm.deployment("bench:latest", upstream) for upstream in upstream_ports]
    log, command = place / "log", litellm.command(program, place, port, deployments)
    process = stack.enter_context(started(command, log, **litellm.environment(key)))
    wait_until(lambda: call(port, "/health/liveliness") == 200, process, log, litellm.START_SECONDS)
    return Side(LITELLM, port, psutil.Process(process.pid), "openai", key, LITELLM_STREAMS)


def check(side: Side) -> None:
    """A non-streamed chat is answered, whoever is between."""
    body = {"model": "bench:latest", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    path = "/api/chat" if side.api == "ollama" else "/v1/chat/completions"
    status = call(side.port, path, body, side.key)
    if status != 200:
        raise SystemExit(f"{side.name} answered a chat with {status}")


def cpu_seconds(side: Side) -> float:
    return client.cpu_seconds(side.pids)


def processing_seconds(exposition: str) -> float | None:
    """What the balancer spent on requests so far, from its page for Prometheus."""
    found = re.search(r"^ollama_balancer_proxy_processing_seconds_total (\S+)", exposition, re.MULTILINE)
    return float(found[1]) if found else None


def settle(side: Side) -> None:
    """Wait until what was cut no longer keeps anybody busy."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        before = cpu_seconds(side)
        time.sleep(0.2)
        if cpu_seconds(side) - before < 0.02:
            return


def run_load(side: Side, load: Load, seconds: float, upstream: int, figures: Figures) -> None:
    command = [sys.executable, str(HERE / "client.py"), str(side.port), load.kind, str(load.number), str(seconds)]
    command += ["--api", side.api]
    limit = seconds + 120
    if load.kind == "streams":
        command += ["--rate", str(CHUNKS_PER_SECOND), "--ramp", str(load.ramp), "--patience", str(PATIENCE_SECONDS)]
        command += ["--cpu-of", *map(str, [upstream, *side.pids])]
    environment = os.environ | ({client.KEY: side.key} if side.key else {})
    balancer = side.name.startswith("balancer") and load.kind == "requests"
    own_before = processing_seconds(fetch(side.port, "/metrics")[1]) if balancer else None
    before = cpu_seconds(side)
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=limit, check=True, env=environment)
    used = cpu_seconds(side) - before
    own_after = processing_seconds(fetch(side.port, "/metrics")[1]) if balancer else None
    result = json.loads(done.stdout)
    note(figures, load, result, used if side.process is not None else None)
    if own_before is not None and own_after is not None:
        figures.own_us.append((own_after - own_before) / result["sent"] * 1e6)
    if result.get("cut"):
        settle(side)


def note(figures: Figures, load: Load, result: dict[str, Any], used: float | None) -> None:
    """Add a round's figures; `used` are the CPU seconds of the proxy."""
    figures.errors += result["errors"]
    figures.cut += bool(result.get("cut"))
    if len(result["ms"]) < 2:
        return
    percentiles = quantiles(result["ms"], n=100, method="inclusive")
    figures.p50_ms.append(percentiles[49])
    figures.p99_ms.append(percentiles[98])
    if load.kind == "requests":
        figures.rate.append(result["rate"])
    if used is not None:
        figures.cpu_us.append(used / result["sent"] * 1e6)
    steady = result.get("steady")
    if steady and steady["chunks"]:
        upstream, *proxy, load_itself = steady["cpu"]
        figures.kept_up.append(100 * steady["chunks"] / (steady["seconds"] * load.number * CHUNKS_PER_SECOND))
        figures.upstream.append(100 * upstream / steady["seconds"])
        figures.client.append(100 * load_itself / steady["seconds"])
        if proxy:
            figures.steady_us.append(sum(proxy) / steady["chunks"] * 1e6)
    elif load.kind == "streams" and used is not None:
        figures.steady_us.append(None)


@dataclass(frozen=True)
class Others:
    """Other proxies' programs, where there are any."""

    nginx: str | None
    litellm: str | None


def measure(
    folder: Path, rounds: int, scale: float, loads: Sequence[Load], others: Others
) -> dict[Load, dict[str, Figures]]:
    with ExitStack() as stack:
        ports, upstream = start_upstream(stack, folder, UPSTREAM_HOSTS)
        bare = ("--mode", f"reverse:http://127.0.0.1:{ports[0]}", "--set", "stream_large_bodies=1")
        sides = [
            Side(DIRECT, ports[0], None),
            *([start_forwarder(stack, folder, ports[0])] if hasattr(select, "epoll") else []),
            start_mitmdump(stack, folder, BARE, *bare, token=""),
            start_balancer(stack, folder, ONE, ports[:1]),
            start_balancer(stack, folder, FOUR, ports),
            start_balancer(stack, folder, PLAIN, ports[:1], options=NO_SHORTCUTS),
        ]
        if others.nginx is not None:
            sides.append(start_nginx(stack, folder, others.nginx, ports))
        if others.litellm is not None:
            sides.append(start_litellm(stack, folder, others.litellm, ports))
        for side in sides:
            check(side)
        results = {load: {side.name: Figures() for side in sides if side.takes(load)} for load in loads}
        for number in range(rounds):
            for load in loads:
                print(f"round {number + 1} of {rounds}: {load.name}", file=sys.stderr, flush=True)
                those = [side for side in sides if side.takes(load)]
                for at in range(len(those)):
                    side = those[(at + number) % len(those)]
                    run_load(side, load, load.length(scale), upstream, results[load][side.name])
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


def time_of(values: list[float], digits: int) -> str:
    """The same of milliseconds, in seconds where they are many."""
    if values and median(values) >= 1000:
        return f"{spread([value / 1000 for value in values], 1)} s"
    return spread(values, digits)


def known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def over(values: Sequence[float | None], base: Sequence[float | None], factor: float = 1.0) -> list[float]:
    """Each round's figure as a share of the same round's other one, of the rounds that have both."""
    if len(values) != len(base):
        return []
    pairs = zip(values, base, strict=True)
    return [factor * value / other for value, other in pairs if value is not None and other is not None]


def markdown(lines: list[list[str]]) -> str:
    head, *rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def requests_table(results: dict[Load, dict[str, Figures]]) -> str:
    lines = [["load", "side", "latency p50, ms", "latency p99, ms", "added p50, ms", "added p99, ms", "requests/s"]]
    lines[0] += ["CPU, us a request", "own, us", "own, % of mitmdump's CPU"]
    for load, sides in results.items():
        if load.kind != "requests":
            continue
        direct = sides[DIRECT]
        for name, figures in sides.items():
            row = [load.name, name, spread(figures.p50_ms, 2), spread(figures.p99_ms, 2)]
            if figures is direct:
                row += ["–", "–"]
            else:
                row += [added(figures.p50_ms, direct.p50_ms), added(figures.p99_ms, direct.p99_ms)]
            row += [spread(figures.rate, 0), spread(figures.cpu_us, 0), spread(figures.own_us, 0)]
            row.append(spread(over(figures.own_us, sides[BARE].cpu_us, 100), 1))
            lines.append(row)
    return markdown(lines)


def streams_table(results: dict[Load, dict[str, Figures]]) -> str:
    lines = [["load", "side", "delay p50, ms", "delay p99, ms", "kept up, %", "CPU, us a chunk", "with set-up, us"]]
    for load, sides in results.items():
        if load.kind != "streams":
            continue
        for name, figures in sides.items():
            lines.append(
                [
                    load.name,
                    name,
                    time_of(figures.p50_ms, 2),
                    time_of(figures.p99_ms, 2),
                    f"{spread(figures.kept_up, 0)}{', cut' if figures.cut else ''}",
                    spread(known(figures.steady_us), 1),
                    spread(figures.cpu_us, 0),
                ]
            )
    return markdown(lines)


def generator_table(results: dict[Load, dict[str, Figures]]) -> str:
    """Whether the load itself was the limit: what its two processes took with nobody between."""
    lines = [["direct", "kept up, %", "upstream, % of a core", "client, % of a core"]]
    for load, sides in results.items():
        if load.kind == "streams":
            direct = sides[DIRECT]
            lines.append(
                [load.name, *(spread(values, 0) for values in (direct.kept_up, direct.upstream, direct.client))]
            )
    return markdown(lines)


@dataclass(frozen=True)
class Target:
    text: str
    kind: str
    values: Callable[[Figures, Figures], list[float]]
    """Of a balancer's figures and bare mitmdump's under the same load."""
    met: Callable[[float], bool]
    digits: int
    numbers: frozenset[int] | None = None
    """Of loads; None: all of the kind."""
    per_chunk: bool = False
    """Whether it compares what a chunk costs, with mitmdump."""


TARGETS = (
    Target(
        "requests/s: at least 1.5 times mitmdump's",
        "requests",
        lambda balancer, bare: over(balancer.rate, bare.rate),
        lambda value: value >= 1.5,
        2,
    ),
    Target(
        "own time for a request: at most 10 % of mitmdump's CPU for one",
        "requests",
        lambda balancer, bare: over(balancer.own_us, bare.cpu_us, 100),
        lambda value: value <= 10,
        1,
    ),
    Target(
        "CPU of a chunk while all streams run: at most a third (0.33) of mitmdump's",
        "streams",
        lambda balancer, bare: over(balancer.steady_us, bare.steady_us),
        lambda value: value <= 1 / 3,
        2,
        per_chunk=True,
    ),
    Target(
        "p99 delay of a chunk: under 100 ms",
        "streams",
        lambda balancer, bare: balancer.p99_ms,
        lambda value: value < 100,
        1,
        frozenset({400}),
    ),
)


def targets_table(results: dict[Load, dict[str, Figures]]) -> str:
    """By the median over the rounds; a target is met where it is with one agent and with four.

    Where mitmdump is late by a chunk and more it reads several at once, and what one costs it there is not comparable.
    """
    lines = [["target", "load", "1 agent", "4 agents", "met"]]
    for target in TARGETS:
        for load, sides in results.items():
            if load.kind != target.kind or (target.numbers is not None and load.number not in target.numbers):
                continue
            found = [target.values(sides[name], sides[BARE]) for name in (ONE, FOUR)]
            late = bool(sides[BARE].p50_ms) and median(sides[BARE].p50_ms) >= 1000 / CHUNKS_PER_SECOND
            if target.per_chunk and late:
                verdict = "mitmdump is late"
            elif all(found):
                verdict = "met" if all(target.met(median(values)) for values in found) else "not met"
            else:
                verdict = "not measured"
            lines.append([target.text, load.name, *(spread(values, target.digits) for values in found), verdict])
    return markdown(lines)


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


def other_versions(others: Others) -> list[str]:
    said = [nginx.version(others.nginx) if others.nginx else "no nginx here: left out"]
    if others.litellm is None:
        said.append("no LiteLLM here: left out (pip install -e ./agent_reporter -e '.[bench]' brings it)")
    else:
        said.append(litellm.version(others.litellm))
    return said


def allow_open_files(wanted: int) -> int:
    """Raise the limit here and in what is started; each stream is two connections of a proxy. What it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def end_on_signals() -> None:
    """Have those that end the program end what it has started, too."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, stop)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.proxy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds of some loads, about two minutes")
    parser.add_argument("--streams", action="store_true", help="only the loads of streams")
    parser.add_argument("--rounds", type=int, help="rounds over all sides (default 3, with --quick 2)")
    parser.add_argument("--litellm", metavar="PATH", help="LiteLLM's program, where it is not beside Python's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's figures there")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 3)
    if rounds < 1:
        parser.error("--rounds takes 1 or more")

    end_on_signals()
    allow_open_files(OPEN_FILES)
    others = Others(nginx.installed("nginx"), litellm.installed(arguments.litellm))
    if arguments.litellm and others.litellm is None:
        parser.error(f"--litellm: there is no program {arguments.litellm}")
    with tempfile.TemporaryDirectory(prefix="bench-proxy-") as folder:
        loads = [load for load in LOADS if load.kind == "streams" or not arguments.streams]
        if arguments.quick:
            loads = [load for load in loads if load.number in QUICK]
        results = measure(Path(folder), rounds, 0.4 if arguments.quick else 1.0, loads, others)

    given = [option for option in ("quick", "streams") if getattr(arguments, option)]
    command = " ".join(["python -m benches.proxy", *(f"--{option}" for option in given)])
    print(f"{machine()}, {', '.join(other_versions(others))}")
    print(f"`{command}`: {rounds} rounds, median (lowest–highest round)\n")
    if not arguments.streams:
        print("A request, not streamed, over kept-alive connections:\n")
        print(requests_table(results), end="\n\n")
    print(f"A streamed chunk, {CHUNKS_PER_SECOND} a second in each stream:\n")
    print(streams_table(results), end="\n\n")
    print("The load itself:\n")
    print(generator_table(results), end="\n\n")
    print("Targets, as shares of mitmdump's figure in the same round where they are relative:\n")
    print(targets_table(results))
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
