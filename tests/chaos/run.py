"""A run: a real mitmdump before twelve host processes, clients and faults of all kinds, and what must hold."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from ollama_balancer.core.policies import POLICIES
from tests.chaos.clients import BrokenAnswerError, ParsedRequest, draw, judge
from tests.chaos.fleet import Chaos, Host
from tests.e2e.harness import Proxy, running_proxy

PATIENCE = 40.0
"""Seconds within which each request is over."""

MEMORY_CEILING = 80 * 1024 * 1024
"""Bytes by which the proxy may grow from the first quiet point to the last."""

QUIET_SECONDS = 20.0

PASSING_TASKS = (
    "Task",
    "None",
    "anyio._core._sockets.connect_tcp.<locals>.try_connect",
    "client handler",
    "client connection handler",
    "timeout watchdog",
    "handle_hook",
)
"""Those of clients that are connected, of probes and of the look at the tasks itself."""

CONTROL_CONNECTIONS = 8
"""At most that many clients are connected at a quiet point: the run's own."""


@dataclass
class Report:
    """What a run has seen. `broken` is empty if all held."""

    seed: int
    broken: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    failovers: int = 0
    ejections: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [f"{sum(self.outcomes.values())} requests in {self.seconds:.0f} s, seed {self.seed}"]
        lines += [f"  {count:5d}  {kind}" for kind, count in self.kinds.most_common()]
        lines += ["they ended"] + [f"  {count:5d}  {outcome}" for outcome, count in self.outcomes.most_common()]
        lines += ["survived"] + [f"  {count:5d}  {fault}" for fault, count in sorted(self.faults.items())]
        lines += [f"  {self.failovers:5d}  failovers that no client has noticed", f"  {self.ejections:5d}  ejections"]
        lines += ["all invariants held" if not self.broken else "BROKEN", *self.broken[:40]]
        return "\n".join(lines)


class Run:
    def __init__(self, proxy: Proxy, hosts: list[Host], report: Report, requests: int, seconds: float) -> None:
        self.proxy, self.hosts, self.report = proxy, hosts, report
        self.requests, self.seconds = requests, seconds
        self.rng = random.Random(report.seed)
        self.chaos = Chaos(hosts, proxy.url, proxy.lines, random.Random(report.seed + 1))
        self.tasks: dict[str, int] | None = None
        self.memory = 0

    def broken(self, what: str) -> None:
        self.report.broken.append(what)

    async def run(self, rounds: int = 3) -> None:
        reporting = asyncio.create_task(self.chaos.report())
        try:
            await self._until("all hosts are online", self._all_online)
            await self._quiet_point("before")
            number = 0
            for _ in range(rounds):
                share = self.requests // rounds
                await self._storm(number, share)
                number += share
                await self._quiet_point(f"after {number} requests")
                await self._steady_point()
                await self._quiet_point(f"after the steady point at {number} requests")
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
            self.report.faults = self.chaos.survived
            self.report.broken += self.chaos.broken
            self.report.broken += [f"{h.name} ran {h.over} requests of a model at once" for h in self.hosts if h.over]
            await self.chaos.http.aclose()

    async def _storm(self, first: int, count: int) -> None:
        """Faults and clients at once, at an even pace."""
        pause = self.seconds / self.requests
        chaos = asyncio.create_task(self.chaos.run())
        watching = asyncio.create_task(self.chaos.watch_ejected())
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    httpx.AsyncClient(
                        base_url=self.proxy.url,
                        trust_env=False,
                        verify=False,
                        timeout=PATIENCE,
                        headers={"Authorization": f"Bearer key-{key}"},
                        limits=httpx.Limits(max_connections=None),
                    )
                )
                for key in range(8)
            ]
            running = set()
            for number in range(first, first + count):
                asked = draw(self.rng, number, [host.name for host in self.hosts])
                leaves = self.rng.uniform(0, 0.12) if self.rng.random() < 0.1 else None
                running.add(asyncio.create_task(self._one(self.rng.choice(clients), number, asked, leaves)))
                await asyncio.sleep(pause)
            _, hanging = await asyncio.wait(running, timeout=PATIENCE + 10)
            for task in hanging:
                self.broken("a client hangs")
                task.cancel()
            for task in (chaos, watching):
                task.cancel()
            for result in await asyncio.gather(chaos, watching, return_exceptions=True):
                if not isinstance(result, asyncio.CancelledError):
                    self.broken(f"the chaos itself failed: {result!r}")
            await self.chaos.calm()

    async def _one(self, client: httpx.AsyncClient, number: int, asked: ParsedRequest, leaves: float | None) -> None:
        report = self.report
        report.kinds[asked.kind] += 1
        headers = {"X-Balancer-Agent": asked.pin} if asked.pin else {}
        try:
            async with asyncio.timeout(leaves):
                response = await client.request(asked.method, asked.path, json=asked.body, headers=headers)
        except TimeoutError:
            report.outcomes["left"] += 1
            return
        except httpx.HTTPError as e:
            report.outcomes["broken"] += 1
            self.broken(f"{number} {asked.kind}, {asked.stream=}: {e!r}")
            return
        try:
            outcome = judge(asked, response.status_code, response.content)
        except BrokenAnswerError as e:
            report.outcomes["broken"] += 1
            self.broken(f"{number} {asked.kind}, {asked.stream=}, by {response.headers.get('x-balancer-agent')}: {e}")
            return
        report.outcomes[outcome] += 1
        if outcome == "whole" and int(response.headers.get("X-Balancer-Attempts", 1)) > 1:
            report.failovers += 1
        if outcome.startswith("error ") and outcome != "error event" and not asked.pin:
            self.broken(f"{number} {asked.kind}: {outcome} though others could serve: {response.text[:300]}")

    async def _quiet_point(self, when: str) -> None:
        """Nothing runs: all counts are zero, and nothing has grown."""
        print(f"quiet {when}", file=sys.stderr, flush=True)
        await self._until(f"quiet {when}", self._quiet)
        for name, agent in (await self.chaos.agents()).items():
            stats = agent["stats"]
            if stats["requests"] != sum(stats[name] for name in ("succeeded", "failed", "cancelled", "rejected")):
                self.broken(f"{when}: the counts of {name} do not add up: {stats}")
        await self._until(f"the same tasks {when}", self._same_tasks)
        memory = psutil.Process(self.proxy.process.pid).memory_info().rss
        if not self.memory and when != "before":
            self.memory = memory
        if self.memory and memory - self.memory > MEMORY_CEILING:
            self.broken(f"{when}: the memory has grown by {(memory - self.memory) >> 20} MiB")

    async def _steady_point(self) -> None:
        """All hosts hold what they have: the counts of the balancer and theirs are the same."""
        for host in self.hosts:
            await host.tell(faults={"hang": True})
        async with httpx.AsyncClient(
            base_url=self.proxy.url, trust_env=False, verify=False, timeout=PATIENCE
        ) as client:
            bodies = [
                {"model": self.rng.choice(host.models[:-1]), "prompt": "x", "stream": False} for host in self.hosts
            ]
            sent = [asyncio.create_task(client.post("/api/generate", json=body)) for body in bodies]

            async def same() -> str | None:
                agents = await self.chaos.agents()
                ours = {host.name: agents[host.name]["in_flight"] for host in self.hosts}
                theirs = {host.name: (await host.tell())["in_flight"] for host in self.hosts}
                there = sum(theirs.values()) == len(bodies)
                return None if ours == theirs and there else f"ours {ours}, theirs {theirs}"

            await self._until("the counts are the hosts' own", same)
            for host in self.hosts:
                await host.tell(faults={})
            for response in await asyncio.gather(*sent):
                if response.status_code != 200:
                    self.broken(f"a request that was held got {response.status_code}: {response.text[:200]}")

    async def _all_online(self) -> str | None:
        # Without requests nothing tries an ejected one.
        well = ("online", "ejected")
        away = [name for name, agent in (await self.chaos.agents()).items() if agent["status"] not in well]
        return f"{away} are not" if away else None

    async def _quiet(self) -> str | None:
        """None when nothing runs any more, else what does."""
        away = await self._all_online()
        if away:
            return away
        theirs = {host.name: (await host.tell())["in_flight"] for host in self.hosts}
        state = await self._introspect()
        shown = (await self.chaos.http.get("/api/balancer")).json()
        left = {
            name: state[name] for name in ("contexts", "servers", "timers", "kept_contexts", "receivers") if state[name]
        }
        left |= {f"in flight at {name}": count for name, count in state["in_flight"].items() if count}
        left |= {f"{name}'s own count": count for name, count in theirs.items() if count}
        left |= {"waiting": shown["waiting"]} if shown["waiting"] else {}
        return f"left are {left}" if left else None

    async def _same_tasks(self) -> str | None:
        """Those that belong to no client are the same as before, and no more clients are there than the run's own."""
        state = await self._introspect()
        tasks = {n: count for n, count in state["tasks"].items() if n.partition("(")[0] not in PASSING_TASKS}
        if self.tasks is None:
            self.tasks = tasks
        handlers = state["tasks"].get("client handler", 0)
        if max(handlers, state["clients"]) > CONTROL_CONNECTIONS:
            return f"there are {handlers} client handlers and {state['clients']} clients"
        return None if tasks == self.tasks else f"they are {tasks} and were {self.tasks}"

    async def _introspect(self) -> dict[str, Any]:
        async with httpx.AsyncClient(
            base_url=self.proxy.url, trust_env=False, verify=False, timeout=PATIENCE
        ) as client:
            value: dict[str, Any] = (await client.get("/introspection")).json()
        return value

    async def _until(self, what: str, problem: Any) -> None:
        deadline = time.monotonic() + QUIET_SECONDS
        while (said := await problem()) is not None:
            if time.monotonic() > deadline:
                self.broken(f"not {what} within {QUIET_SECONDS:g} s: {said}")
                return
            await asyncio.sleep(0.1)


def run(
    folder: Path, *, seed: int, requests: int, seconds: float, hosts: int, keep: Path | None = None, relay: bool = True
) -> Report:
    report = Report(seed)
    fleet = [Host(number) for number in range(hosts)]
    options = {
        "balancer_agents": ",".join(f"{host.name}={host.url}" for host in fleet),
        "balancer_mode": list(POLICIES)[seed % len(POLICIES)],
        "balancer_connect_timeout": 4,
        "balancer_response_timeout": 30,
        "balancer_queue_timeout": 30,
        "balancer_retries": hosts,
        "balancer_relay": str(relay).lower(),
        "flow_detail": 0,
        "termlog_verbosity": "info",
    }
    arguments = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    impatient = Path(__file__).with_name("impatient.py")
    with running_proxy(folder, "-s", str(impatient), *arguments) as proxy:

        async def everything() -> None:
            await asyncio.gather(*(host.start() for host in fleet))
            began = time.monotonic()
            try:
                await Run(proxy, fleet, report, requests, seconds).run()
            finally:
                report.seconds = time.monotonic() - began
                await asyncio.gather(*(host.kill() for host in fleet))

        asyncio.run(everything())
    report.ejections = sum("is ejected for" in line for line in proxy.lines)
    if proxy.process.returncode != 0:
        report.broken.append(f"the proxy ended with {proxy.process.returncode}")
    for line in ("Traceback", "Addon error", "has crashed", "never awaited"):
        if line in proxy.log:
            at = next(n for n, said in enumerate(proxy.lines) if line in said)
            report.broken.append("the log says: " + " | ".join(proxy.lines[max(0, at - 2) : at + 25]))
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / "proxy.log").write_text(proxy.log)
    return report
