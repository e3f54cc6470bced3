"""Twelve host processes, and what is done to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx

from tests.chaos.host import EMBEDDER, SLOTS
from tests.e2e.harness import ROOT, TOKEN, environment, free_port, report

MODELS = ("llama3.2", "qwen3", "gemma3", "phi4")

REPORT_SECONDS = 0.5


class Host:
    """One host's process. Even ones report as a reporter does; the others are probed by the balancer."""

    def __init__(self, number: int) -> None:
        self.name = f"h{number}"
        self.models = [model for at, model in enumerate(MODELS) if (at + number) % 4 != 0] + [EMBEDDER]
        self.reports = number % 2 == 0
        self.port = free_port()
        self.process: asyncio.subprocess.Process | None = None
        self.fault: str | None = None
        """What is being done to it."""
        self.frozen = False
        self.over = 0
        self._said = 0
        self._talking = asyncio.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.host", self.name, str(self.port), ",".join(self.models)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
        )
        assert self.process.stdout
        assert json.loads(await self.process.stdout.readline())["port"] == self.port

    async def tell(self, **message: Any) -> dict[str, int]:
        """Its counts, after it has taken the message."""
        async with self._talking:
            assert self.process and self.process.stdin and self.process.stdout
            self._said += 1
            self.process.stdin.write(json.dumps(message | {"number": self._said}).encode() + b"\n")
            while True:  # whoever asked last may not have waited for the answer
                counts: dict[str, int] = json.loads(await self.process.stdout.readline())
                if counts["number"] == self._said:
                    break
            self.over = max(self.over, counts["over"])
            return counts

    async def kill(self) -> None:
        assert self.process
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)
        self.frozen = number == signal.SIGSTOP


FAULTS: dict[str, dict[str, Any]] = {
    "runner frozen": {"hang": True},
    "cut mid-stream": {"cut_after_chunks": 3},
    "ended without terminal event": {"end_without_done_after_chunks": 3},
    "crashed mid-stream": {"error_event_after_chunks": 3},
    "crashed before the first byte": {"error_event_after_chunks": 0},
    "refused": {"refuse": True},
    "reset": {"reset_before_head": True},
    "closed": {"close_before_head": True},
    "busy (503)": {"status": 503},
    "slowed": {"slow_factor": 8.0},
}
"""By what a host is told. Besides: killed and restarted, frozen, drained."""

KINDS = (*FAULTS, "killed", "frozen", "drained")


class Chaos:
    """Does things to the hosts, one after the other, as the seed has it. At most a third suffer at once."""

    def __init__(self, hosts: Sequence[Host], url: str, log: Sequence[str], rng: random.Random) -> None:
        self.hosts = hosts
        self.log = log
        self.rng = rng
        self.http = httpx.AsyncClient(
            base_url=url,
            trust_env=False,
            verify=False,
            timeout=30,
            headers={"Authorization": f"Bearer {TOKEN}"},
            limits=httpx.Limits(max_connections=4),
        )
        self.survived: Counter[str] = Counter()
        self.broken: list[str] = []
        self._kinds: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            well = [host for host in self.hosts if host.fault is None]
            if len(well) > len(self.hosts) * 2 / 3:
                host = self.rng.choice(well)
                if not self._kinds:
                    self._kinds = list(KINDS)
                    self.rng.shuffle(self._kinds)
                kind = host.fault = self._kinds.pop()
                task = asyncio.create_task(self._suffer(host, kind, self.rng.uniform(1.5, 4)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(self.rng.uniform(0.2, 0.5))

    async def calm(self) -> None:
        """End all faults now."""
        self._over.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._over.clear()

    async def _suffer(self, host: Host, kind: str, seconds: float) -> None:
        try:
            match kind:
                case "killed":
                    await host.kill()
                    await self._for(seconds)
                    await host.start()
                case "frozen":
                    host.signal(signal.SIGSTOP)
                    await self._for(seconds)
                    host.signal(signal.SIGCONT)
                case "drained":
                    (await self.http.post(f"/api/agents/{host.name}/drain")).raise_for_status()
                    await asyncio.sleep(0.3)  # what was on its way there has arrived
                    before = (await host.tell())["received"]
                    await self._for(seconds)
                    after = (await host.tell())["received"]
                    if after != before:
                        self.broken.append(f"{host.name} got {after - before} requests after its drain")
                    (await self.http.post(f"/api/agents/{host.name}/resume")).raise_for_status()
                case _:
                    await host.tell(faults=FAULTS[kind])
                    await self._for(seconds)
                    await host.tell(faults={})
            self.survived[kind] += 1
        except Exception as e:
            self.broken.append(f"{kind} of {host.name} could not be done: {e!r}")
        finally:
            host.fault = None

    async def _for(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()

    async def report(self) -> None:
        """Report for the hosts that do, until cancelled."""
        while True:
            for host in self.hosts:
                if host.reports and not host.frozen and host.fault != "killed":
                    body = report(cpu=20, num_parallel=SLOTS, models=host.models)
                    await self.http.post(f"/api/agents/{host.name}/metrics", json=body)
            await asyncio.sleep(REPORT_SECONDS)

    async def agents(self) -> dict[str, dict[str, Any]]:
        return {agent["name"]: agent for agent in (await self.http.get("/api/agents")).json()["agents"]}

    async def watch_ejected(self) -> None:
        """An ejected host gets one request at a time to try it; until cancelled."""
        last: dict[str, tuple[int, int]] = {}
        while True:
            await asyncio.sleep(0.3)
            now: dict[str, tuple[int, int]] = {}
            for name, agent in (await self.agents()).items():
                host = next(host for host in self.hosts if host.name == name)
                if agent["status"] == "ejected" and not host.frozen and host.fault != "killed":
                    with contextlib.suppress(json.JSONDecodeError, ConnectionError):  # killed meanwhile
                        received = (await host.tell())["received"]
                        # A client that leaves makes room for the next.
                        received -= agent["stats"]["cancelled"]
                        now[name] = received, sum(f"Agent {name} " in line for line in self.log)
                    if name in now and name in last and now[name][1] == last[name][1]:
                        got = now[name][0] - last[name][0]  # and its state has not changed in between
                        if got > 1:
                            self.broken.append(f"{name} got {got} requests within 0.3 s while ejected")
            last = now
