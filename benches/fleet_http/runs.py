"""Runs of sides before hosts, several at the same time where time goes as fast as the clock."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

from benches.fleet_simulation.workload import Shape
from benches.proxy import started
from ollama_balancer.lab.workload import Workload

from .chats import bodies
from .hosts import Ports, Setting, Visit
from .load import Figures, Sent, send
from .sides import Side, Stage


@dataclass(frozen=True)
class Case:
    side: Side
    shape: Shape
    seed: int
    speed: float


@dataclass(frozen=True)
class Run:
    """What came of a case. The CPU figures are shares of one core."""

    case: Case
    figures: Figures
    proxy_cpu: float
    hosts_cpu: float
    clients_cpu: float
    """Of all runs at the same time."""
    sent: Sent
    visits: list[Visit]
    """Of requests on hosts; of the oracle none."""


class Prepared:
    """A case whose processes run."""

    def __init__(self, case: Case, stack: ExitStack) -> None:
        self.case = case
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-fleet-")))
        setting = Setting(asdict(case.shape), case.seed, case.speed, oracle=case.side.oracle)
        self.workload: Workload = setting.workload
        if not self.workload.requests:
            raise SystemExit("nobody asks for anything: a longer run (--seconds) or a higher --loads is needed")
        log = folder / "hosts.log"
        hosts = stack.enter_context(started([sys.executable, "-m", "benches.fleet_http.hosts"], log))
        assert hosts.stdin is not None
        assert hosts.stdout is not None
        print(json.dumps(asdict(setting)), file=hosts.stdin, flush=True)
        line = hosts.stdout.readline()
        if not line:
            raise SystemExit(f"the hosts did not start:\n{log.read_text()}")
        self.ports = Ports(**json.loads(line))
        self.proxy = case.side.start(Stage(stack, folder, self.ports, self.workload.hosts, hosts, case.speed))
        self.chats = list(bodies(self.workload.requests))
        self._hosts = psutil.Process(hosts.pid)

    async def run(self) -> Run:
        proxy = self.proxy.process
        between = [] if proxy is None else [proxy, *proxy.children(recursive=True)]
        watched = [between, [self._hosts], [psutil.Process()]]
        before, began = [cpu_seconds(each) for each in watched], time.perf_counter()
        sent = await send(self.proxy.port, self.ports.oracle, self.workload, self.chats, self.case.speed)
        seconds = time.perf_counter() - began
        proxy_cpu, hosts_cpu, clients_cpu = (
            (cpu_seconds(each) - used) / seconds for used, each in zip(before, watched, strict=True)
        )
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            answer = await client.get(f"http://127.0.0.1:{self.ports.oracle}/visits")
        visits = [Visit(**visit) for visit in answer.json()["visits"]]
        return Run(self.case, sent.figures, proxy_cpu, hosts_cpu, clients_cpu, sent, visits)


def run_together(cases: Sequence[Case]) -> list[Run]:
    """Start all processes, one after the other, and then have all requests sent."""

    async def run(prepared: Sequence[Prepared]) -> list[Run]:
        return await asyncio.gather(*(each.run() for each in prepared))

    with ExitStack() as stack:
        return asyncio.run(run([Prepared(case, stack) for case in cases]))


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))
