"""What is compared: who stands between the clients and the hosts."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

import benches.litellm
import benches.nginx
from benches.proxy import MITMDUMP, call, free_port, started, wait_until
from ollama_balancer.lab.workload import Workload

from .hosts import Ports, Target

ORACLE = "oracle"

LITELLM_SPEED = 5.0
"""The highest `--speed` with LiteLLM: above it, the time that it takes itself for a request would look like seconds."""

HERE = Path(__file__).resolve().parent

# Without http-no-delay a chunk may lie in the kernel for 0.2 s, which are seconds of simulated time. Hosts are checked
# every 2 simulated seconds, HAProxy's default.
HAPROXY = """\
global
    maxconn 8192
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    timeout queue 600s
    option abortonclose
    option http-no-delay
    option redispatch 1
    default-server check inter {check}ms observe layer4 error-limit 1 on-error mark-down
frontend clients
    bind 127.0.0.1:{port}
    default_backend fleet
backend fleet
    balance leastconn
{servers}
"""


@dataclass(frozen=True)
class Stage:
    """What a side finds when it starts."""

    stack: ExitStack
    """What is started is ended with it."""
    folder: Path
    ports: Ports
    workload: Workload
    hosts: subprocess.Popen[str]
    speed: float


@dataclass(frozen=True)
class Proxy:
    """Where the clients' requests go; `process` is None where nobody is between."""

    port: int
    process: psutil.Process | None = None
    key: str | None = None
    """With which it is called, by OpenAI's API; None: by Ollama's."""


@dataclass(frozen=True)
class Side:
    name: str
    start: Callable[[Stage], Proxy]
    in_place: bool = False
    """Whether each host has the models loaded that it is best to have."""


def balancer(mode: str, *, reporters: bool = True) -> Side:
    """With reporters on the hosts, or with nothing but the hosts' addresses in `balancer_agents`."""

    def start(stage: Stage) -> Proxy:
        port, log, token = free_port(), stage.folder / "mitmdump.log", secrets.token_urlsafe(24)
        options = {"flow_detail": 0, "confdir": stage.folder, "balancer_mode": mode, "balancer_stop_timeout": 0}
        command = [str(MITMDUMP), "-q", "--listen-host", "127.0.0.1", "-p", str(port), "-s", str(HERE / "balancer.py")]
        for name, value in options.items():
            command += ["--set", f"{name}={value}"]
        if not reporters:
            for number, host in enumerate(stage.ports.hosts):
                command += ["--set", f"balancer_agents=h{number}=http://127.0.0.1:{host}"]
        environment = {"OLLAMA_BALANCER_TOKEN": token, "FLEET_HTTP_SPEED": str(stage.speed)}
        process = stage.stack.enter_context(started(command, log, **environment))
        wait_until(lambda: call(port, "/api/balancer") == 200, process, log)
        if not reporters:
            return Proxy(port, psutil.Process(process.pid))
        assert stage.hosts.stdin is not None
        assert stage.hosts.stdout is not None
        print(json.dumps(asdict(Target(port, token))), file=stage.hosts.stdin, flush=True)
        if not stage.hosts.stdout.readline():
            raise SystemExit("the hosts could not report to the balancer")
        return Proxy(port, psutil.Process(process.pid))

    return Side(f"balancer, {mode}{'' if reporters else ', no reporters'}", start)


def nginx(program: str) -> Side:
    def start(stage: Stage) -> Proxy:
        port, file = free_port(), stage.folder / "nginx.conf"
        ejected = 10 / stage.speed  # nginx's default
        configuration = benches.nginx.configuration(
            port, stage.folder, stage.ports.hosts, keepalive=False, ejected=ejected
        )
        file.write_text(configuration)
        return _start(stage, port, benches.nginx.command(program, stage.folder, file), file)

    return Side("nginx, least_conn", start)


def haproxy(program: str) -> Side:
    def start(stage: Stage) -> Proxy:
        servers = "\n".join(
            f"    server h{number} 127.0.0.1:{port} maxconn {spec.parallel}"
            for number, (port, spec) in enumerate(zip(stage.ports.hosts, stage.workload.hosts, strict=True))
        )
        port, file = free_port(), stage.folder / "haproxy.cfg"
        file.write_text(HAPROXY.format(port=port, servers=servers, check=max(1, round(2000 / stage.speed))))
        return _start(stage, port, [program, "-db", "-f", str(file)], file)

    return Side("HAProxy, leastconn, maxconn", start)


def _start(stage: Stage, port: int, command: list[str], configuration: Path) -> Proxy:
    log = configuration.with_suffix(".log")
    process = stage.stack.enter_context(started(command, log))
    wait_until(lambda: call(port, "/api/version") == 200, process, log)
    return Proxy(port, psutil.Process(process.pid))


def litellm(program: str) -> Side:
    """Knows which host has which model, and nothing else of them."""

    def start(stage: Stage) -> Proxy:
        port, log, key = free_port(), stage.folder / "litellm.log", f"sk-{secrets.token_urlsafe(32)}"
        deployments = [
            benches.litellm.deployment(model.name, host, embedding=not model.output)
            for model in stage.workload.models
            for host in stage.ports.hosts
        ]
        command = benches.litellm.command(program, stage.folder, port, deployments, {"routing_strategy": "least-busy"})
        process = stage.stack.enter_context(started(command, log, **benches.litellm.environment(key)))
        wait_until(lambda: call(port, "/health/liveliness") == 200, process, log, benches.litellm.START_SECONDS)
        return Proxy(port, psutil.Process(process.pid), key)

    return Side("LiteLLM, least-busy", start)


def oracle(*, in_place: bool = False) -> Side:
    """With its models in their places from the first moment, or with no more than any other side begins with."""
    name = f"{ORACLE}, models in place" if in_place else ORACLE
    return Side(name, lambda stage: Proxy(stage.ports.oracle), in_place)


def all_sides(modes: Sequence[str], speed: float, litellm_program: str | None = None) -> tuple[list[Side], list[str]]:
    """Those that can be started here, and their versions or what is missing."""
    sides = [balancer(mode, reporters=reporters) for mode in modes for reporters in (True, False)]
    notes = []
    for name, make in (("nginx", nginx), ("haproxy", haproxy)):
        program = benches.nginx.installed(name)
        if program is None:
            notes.append(f"no {name} here: skipped; Debian's package is called {name}")
        else:
            sides.append(make(program))
            notes.append(benches.nginx.version(program))
    program = benches.litellm.installed(litellm_program)
    if program is None:
        notes.append("no LiteLLM here: skipped")
    elif speed > LITELLM_SPEED:
        notes.append(f"LiteLLM skipped: too slow for more than --speed {LITELLM_SPEED:g}")
    else:
        sides.append(litellm(program))
        notes.append(benches.litellm.version(program))
    return [*sides, oracle(), oracle(in_place=True)], notes
