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

import psutil

from benches.fleet_simulation.workload import Shape
from benches.proxy import started

from .hosts import Outage, Ports, Setting, Visit
from .load import Clients, Figures, Sent
from .oracle import placed
from .scenes.scene import Drawn, Scene
from .sides import Side, Stage


@dataclass(frozen=True)
class Case:
    side: Side
    shape: Shape
    seed: int
    speed: float
    scene: Scene

    @property
    def drawn(self) -> Drawn:
        return self.scene.draw(self.shape, self.seed)


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
    outages: list[Outage]


class Prepared:
    """A case whose processes run."""

    def __init__(self, case: Case, stack: ExitStack) -> None:
        self.case = case
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-fleet-")))
        self.drawn = case.drawn
        if not self.drawn.requests:
            raise SystemExit("nobody asks for anything: a longer run (--seconds) or a higher --loads is needed")
        setting = _setting(case, self.drawn)
        log = folder / "hosts.log"
        hosts = stack.enter_context(started([sys.executable, "-m", "benches.fleet_http.hosts"], log))
        assert hosts.stdin is not None
        assert hosts.stdout is not None
        print(json.dumps(asdict(setting)), file=hosts.stdin, flush=True)
        line = hosts.stdout.readline()
        if not line:
            raise SystemExit(f"the hosts did not start:\n{log.read_text()}")
        self.ports = Ports(**json.loads(line))
        self.proxy = case.side.start(Stage(stack, folder, self.ports, self.drawn.workload, hosts, case.speed))
        self._hosts = psutil.Process(hosts.pid)

    async def run(self) -> Run:
        proxy = self.proxy.process
        between = [] if proxy is None else [proxy, *proxy.children(recursive=True)]
        watched = [between, [self._hosts], [psutil.Process()]]
        before, began = [cpu_seconds(each) for each in watched], time.perf_counter()
        async with Clients(self.proxy.port, self.ports.oracle, self.case.speed, self.proxy.key) as clients:
            sent = await self._play(clients)
            seconds = time.perf_counter() - began
            proxy_cpu, hosts_cpu, clients_cpu = (
                (cpu_seconds(each) - used) / seconds for used, each in zip(before, watched, strict=True)
            )
            told = await clients.told("/visits")
        visits = [Visit(**visit) for visit in told["visits"]]
        outages = [Outage(**outage) for outage in told["outages"]]
        figures = self.case.scene.figures(sent, self.drawn)
        return Run(self.case, figures, proxy_cpu, hosts_cpu, clients_cpu, sent, visits, outages)

    async def _play(self, clients: Clients) -> Sent:
        async with asyncio.TaskGroup() as group:
            before = group.create_task(clients.loads_at(self.drawn.workload.warm_up))
            group.create_task(self.case.scene.play(clients, self.drawn))
        return clients.sent(await clients.loads() - before.result())


def _setting(case: Case, drawn: Drawn) -> Setting:
    hosts, models = drawn.workload.hosts, drawn.workload.models
    places = placed(hosts, drawn.requests) if case.side.in_place else [[] for _ in hosts]
    return Setting(
        [asdict(spec) for spec in hosts],
        [asdict(model) for model in models],
        case.speed,
        asdict(case.scene.goal),
        [[model.name for model in each] for each in places],
    )


def run_together(cases: Sequence[Case]) -> list[Run]:
    """Start all processes, one after the other, and then have all requests sent."""

    async def run(prepared: Sequence[Prepared]) -> list[Run]:
        return await asyncio.gather(*(each.run() for each in prepared))

    with ExitStack() as stack:
        return asyncio.run(run([Prepared(case, stack) for case in cases]))


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))
