"""The simulated hosts, all in one process: `python -m benches.fleet_http.hosts`.

Takes one line of JSON on its standard input, a `Setting`; prints one, the `Ports`; and ends when its input does. A
second line, a `Target`, has the hosts register with a balancer and report to it: once that is done, a line says so.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import httpx

from benches.fleet_simulation.workload import Shape, draw
from benches.upstream import Connection, answer
from ollama_balancer.lab.hosts import Host, Job
from ollama_balancer.lab.simulation import REPORT_SECONDS, START
from ollama_balancer.lab.workload import Workload

from .chats import Truth
from .oracle import Oracle, placed
from .realtime import RealTimeEngine

NANOSECONDS = 1_000_000_000
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
VERSION = {"version": "0.12.0"}


@dataclass(frozen=True)
class Setting:
    """Which fleet, and how fast its time goes by."""

    shape: dict[str, Any]
    seed: int
    speed: float
    """Simulated seconds in a second."""
    oracle: bool = False
    """Whether the oracle uses the hosts; it begins with its models in their places."""

    @property
    def workload(self) -> Workload:
        return draw(Shape(**self.shape), self.seed)


@dataclass(frozen=True)
class Ports:
    hosts: list[int]
    oracle: int


@dataclass(frozen=True)
class Target:
    """A balancer that is to get the hosts' reports."""

    port: int
    token: str


@dataclass
class Visit:
    """A request on a host. Times are the hosts', in simulated seconds."""

    request: int
    """Its number in the trace."""
    host: int
    arrived: float
    cancelled: float | None = None


class Server(Protocol):
    """A host, or who has several."""

    def submit(self, job: Job) -> None: ...

    def cancel(self, job: Job) -> None: ...


class Fleet:
    def __init__(self, setting: Setting) -> None:
        workload = setting.workload
        self.engine = RealTimeEngine(setting.speed, asyncio.get_running_loop())
        self.models = {model.name: model for model in workload.models}
        self.hosts = [Host(self.engine, spec, f"h{number}") for number, spec in enumerate(workload.hosts)]
        places = placed(workload.hosts, workload.requests) if setting.oracle else [[] for _ in self.hosts]
        self.oracle = Oracle(self.engine, dict(zip(self.hosts, places, strict=True)))
        self.visits: list[Visit] = []

    async def listen(self) -> Ports:
        loop = asyncio.get_running_loop()
        servers: list[Server] = [*self.hosts, self.oracle]
        ports = []
        for server in servers:
            listener = await loop.create_server(partial(Client, self, server), "127.0.0.1", 0, backlog=1024)
            ports.append(listener.sockets[0].getsockname()[1])
        return Ports(ports[:-1], ports[-1])

    def tell(self, path: str, server: Server) -> dict[str, Any] | None:
        """What a GET of that path is answered; None: there is no such path."""
        match path:
            case "/api/version":
                return VERSION
            case "/api/tags":
                return {"models": _entries(self.models)}
            case "/api/ps":
                return {"models": _entries(server.runners) if isinstance(server, Host) else []}
            case "/loads":
                return {"loads": sum(host.loads for host in self.hosts)}
            case "/now":
                self.engine.catch_up()
                return {"now": self.engine.now}
            case "/visits":
                return {"visits": [asdict(visit) for visit in self.visits]}
        return None

    # Reports

    async def report_to(self, target: Target, ports: list[int]) -> None:
        """Register all hosts, and report for each of them every ten simulated seconds."""
        headers = {"Authorization": f"Bearer {target.token}"}
        client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{target.port}", headers=headers, trust_env=False, timeout=10
        )
        async with client, asyncio.TaskGroup() as group:
            for host, port in zip(self.hosts, ports, strict=True):
                body = {"name": host.name, "url": f"http://127.0.0.1:{port}"}
                (await client.post("/api/agents", json=body)).raise_for_status()
                await self._report(client, host)
            print(json.dumps("reporting"), flush=True)
            for host in self.hosts:
                group.create_task(self._reports(client, host))

    async def _reports(self, client: httpx.AsyncClient, host: Host) -> None:
        seconds = REPORT_SECONDS / self.engine.speed
        await asyncio.sleep(random.uniform(0, seconds))
        while True:
            await self._report(client, host)
            await asyncio.sleep(seconds)

    async def _report(self, client: httpx.AsyncClient, host: Host) -> None:
        self.engine.catch_up()
        spec, running = host.spec, host.running
        report = {
            "cpu_usage": min(100.0, 5 + 85.0 * running / spec.parallel),
            "memory_usage": min(100.0, 20 + 70.0 * len(host.runners) / spec.fits),
            "active_requests": 0,
            "timestamp": (START + timedelta(seconds=self.engine.now)).isoformat(),
            "models": _entries(self.models),
            "loaded_models": _entries(host.runners),
            "num_parallel": spec.parallel,
            "max_loaded_models": spec.fits,
            "ollama_ok": True,
        }
        (await client.post(f"/api/agents/{host.name}/metrics", json=report)).raise_for_status()


def _entries(names: Any) -> list[dict[str, str]]:
    return [{"name": name, "model": name} for name in names]


class Client(Connection):
    """Who asks one of the servers."""

    def __init__(self, fleet: Fleet, server: Server) -> None:
        super().__init__()
        self.fleet = fleet
        self.server = server
        self.job: Job | None = None
        self.visit: Visit | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        job, self.job = self.job, None
        if job is not None:
            self.fleet.engine.catch_up()
            self.server.cancel(job)
            if self.visit is not None:
                self.visit.cancelled = self.fleet.engine.now

    def request(self, method: str, path: str, body: bytes) -> None:
        if method == "POST" and path == "/api/chat":
            self.chat(json.loads(body))
            return
        told = self.fleet.tell(path, self.server) if method == "GET" else None
        if told is not None:
            self.transport.write(answer(200, b"OK", json.dumps(told).encode()))
        else:
            self.transport.write(answer(404, b"Not Found", b'{"error":"not found"}'))

    def chat(self, body: dict[str, Any]) -> None:
        model, truth = self.fleet.models[body["model"]], Truth.of(body)
        self.fleet.engine.catch_up()
        self.job = Job(model, truth.conversation, truth.prompt, truth.output, self.began, self.ended)
        if isinstance(self.server, Host):
            self.visit = Visit(truth.number, self.fleet.hosts.index(self.server), self.fleet.engine.now)
            self.fleet.visits.append(self.visit)
        self.server.submit(self.job)

    def began(self) -> None:
        assert self.job is not None
        name, message = self.job.model.name, {"role": "assistant", "content": "Well"}
        self.transport.write(STREAM_HEAD + chunk({"model": name, "message": message, "done": False}))

    def ended(self, whole: bool) -> None:
        job, self.job = self.job, None
        assert job is not None
        self.transport.write(chunk(last_event(job)) + b"0\r\n\r\n")


def chunk(event: dict[str, Any]) -> bytes:
    line = json.dumps(event).encode() + b"\n"
    return b"%x\r\n%b\r\n" % (len(line), line)


def last_event(job: Job) -> dict[str, Any]:
    """The end of an answer; durations are of simulated time."""
    return {
        "model": job.model.name,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "total_duration": round((job.finished - job.arrived) * NANOSECONDS),
        "load_duration": round(max(0.02, job.ready - job.arrived) * NANOSECONDS),
        "prompt_eval_count": job.prompt,
        "prompt_eval_duration": round((job.first - job.ready) * NANOSECONDS),
        "eval_count": job.output,
        "eval_duration": round((job.finished - job.first) * NANOSECONDS),
    }


async def main() -> None:
    loop = asyncio.get_running_loop()
    fleet = Fleet(Setting(**json.loads(await loop.run_in_executor(None, sys.stdin.readline))))
    ports = await fleet.listen()
    print(json.dumps(asdict(ports)), flush=True)
    reports: asyncio.Task[None] | None = None
    while target := await loop.run_in_executor(None, sys.stdin.readline):
        reports = asyncio.create_task(fleet.report_to(Target(**json.loads(target)), ports.hosts))
    if reports is not None:
        reports.cancel()


if __name__ == "__main__":
    asyncio.run(main())
