"""The simulated hosts, all in one process: `python -m benches.fleet_http.hosts`.

Takes one line of JSON on its standard input, a `Setting`; prints one, the `Ports`; and ends when its input does. A
second line, a `Target`, has the hosts register with a balancer and report to it: once that is done, a line says so.
What goes on is told at the oracle's port, where a host can be killed for a while, too.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import struct
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import httpx

from benches.upstream import Connection, answer
from ollama_balancer.lab.hosts import Host, Job, Model, Runner, Spec
from ollama_balancer.lab.simulation import REPORT_SECONDS, START

from .chats import Truth
from .oracle import Goal, Oracle
from .realtime import RealTimeEngine

NANOSECONDS = 1_000_000_000
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
VERSION = {"version": "0.12.0"}


@dataclass(frozen=True)
class Setting:
    """Which fleet, and how fast its time goes by: the fields of each `Spec` and `Model`, and of the oracle's `Goal`."""

    hosts: list[dict[str, Any]]
    models: list[dict[str, Any]]
    speed: float
    """Simulated seconds in a second."""
    goal: dict[str, Any]
    places: list[list[str]]
    """The models with which each host begins."""


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


@dataclass(frozen=True)
class Outage:
    """A host was down. Times are the hosts', in simulated seconds."""

    host: int
    begin: float
    end: float


class Server(Protocol):
    """A host, or who has several."""

    def submit(self, job: Job) -> None: ...

    def cancel(self, job: Job) -> None: ...


class Fleet:
    def __init__(self, setting: Setting) -> None:
        self.engine = RealTimeEngine(setting.speed, asyncio.get_running_loop())
        self.models = {model.name: model for model in (Model(**model) for model in setting.models)}
        self.hosts = [Host(self.engine, Spec(**spec), f"h{number}") for number, spec in enumerate(setting.hosts)]
        places = [[self.models[name] for name in names] for names in setting.places]
        for host, models in zip(self.hosts, places, strict=True):
            host.runners = {model.name: Runner(model) for model in models}
        self.oracle = Oracle(self.engine, dict(zip(self.hosts, places, strict=True)), Goal(**setting.goal))
        self.visits: list[Visit] = []
        self.outages: list[Outage] = []
        self.clients: dict[Server, set[Client]] = defaultdict(set)
        """Of each server, those that are connected."""
        self._listeners: dict[Server, asyncio.Server] = {}
        self._reopening: asyncio.Task[int] | None = None

    async def listen(self) -> Ports:
        return Ports([await self._open(host) for host in self.hosts], await self._open(self.oracle))

    async def _open(self, server: Server, port: int = 0) -> int:
        listener = await self.engine.loop.create_server(partial(Client, self, server), "127.0.0.1", port, backlog=1024)
        self._listeners[server] = listener
        return int(listener.sockets[0].getsockname()[1])

    def close(self) -> None:
        for server, listener in self._listeners.items():
            listener.close()
            for client in self.clients[server]:
                client.transport.abort()

    def crash(self, number: int, seconds: float) -> None:
        """Have a host die. After those seconds it is back, with nothing in memory."""
        host, listener = self.hosts[number], self._listeners[self.hosts[number]]
        port = listener.sockets[0].getsockname()[1]
        self.engine.catch_up()
        now = self.engine.now
        self.outages.append(Outage(number, now, now + seconds))
        listener.close()
        host.crash()
        for client in list(self.clients[host]):
            client.reset()
        self.oracle.lost(host)
        self.engine.after(seconds, partial(self._restart, host, port))

    def _restart(self, host: Host, port: int) -> None:
        host.up = True
        self.oracle.back(host)
        self._reopening = self.engine.loop.create_task(self._open(host, port))

    def tell(self, path: str, server: Server) -> dict[str, Any] | None:
        """What a GET of that path is answered; None: there is no such path."""
        match path:
            case "/api/version":
                return VERSION
            case "/api/tags":
                return {"models": _entries(self.models.values())}
            case "/api/ps":
                return {"models": _loaded(server) if isinstance(server, Host) else []}
            case "/loads":
                return {"loads": sum(host.loads for host in self.hosts)}
            case "/now":
                self.engine.catch_up()
                return {"now": self.engine.now}
            case "/visits":
                return {
                    "visits": [asdict(visit) for visit in self.visits],
                    "outages": [asdict(outage) for outage in self.outages],
                }
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
        if not host.up:
            return
        spec, running = host.spec, host.running
        report = {
            "cpu_usage": min(100.0, 5 + 85.0 * running / spec.parallel),
            "memory_usage": min(100.0, 20 + 70.0 * len(host.runners) / spec.fits),
            "active_requests": 0,
            "timestamp": (START + timedelta(seconds=self.engine.now)).isoformat(),
            "models": _entries(self.models.values()),
            "loaded_models": _loaded(host),
            "num_parallel": spec.parallel,
            "ollama_ok": True,
        }
        if spec.memory < math.inf:
            report["gpus"] = [{"name": f"the GPU of {host.name}", "memory_total": round(spec.memory)}]
        else:
            report["max_loaded_models"] = spec.fits
        (await client.post(f"/api/agents/{host.name}/metrics", json=report)).raise_for_status()


def _loaded(host: Host) -> list[dict[str, Any]]:
    return _entries(runner.model for runner in host.runners.values())


def _entries(models: Iterable[Model]) -> list[dict[str, Any]]:
    """As /api/tags and /api/ps list them."""
    return [
        {"name": model.name, "model": model.name} | ({"size": round(model.size)} if model.size else {})
        for model in models
    ]


class Client(Connection):
    """Who asks one of the servers."""

    def __init__(self, fleet: Fleet, server: Server) -> None:
        super().__init__()
        self.fleet = fleet
        self.server = server
        self.job: Job | None = None
        self.visit: Visit | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.fleet.clients[self.server].add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fleet.clients[self.server].discard(self)
        job, self.job = self.job, None
        if job is not None:
            self.fleet.engine.catch_up()
            self.server.cancel(job)
            if self.visit is not None:
                self.visit.cancelled = self.fleet.engine.now

    def reset(self) -> None:
        """Close the connection as the system of a host does that has died and is up again."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def request(self, method: str, path: str, body: bytes) -> None:
        told = self.fleet.tell(path, self.server) if method == "GET" else None
        if told is not None:
            self.transport.write(answer(200, b"OK", json.dumps(told).encode()))
        elif method == "POST" and path in ("/api/chat", "/api/embed"):
            self.infer(json.loads(body), embedding=path == "/api/embed")
        elif method == "POST" and path == "/api/generate":
            self.load(json.loads(body))
        elif method == "POST" and path == "/crash" and self.server is self.fleet.oracle:
            self.fleet.crash(**json.loads(body))
            self.transport.write(answer(200, b"OK", b"{}"))
        else:
            self.transport.write(answer(404, b"Not Found", b'{"error":"not found"}'))

    def model(self, body: dict[str, Any]) -> Model | None:
        """The one that the request names; without it the request is refused."""
        model = self.fleet.models.get(body["model"])
        if model is None:
            error = {"error": f'model "{body["model"]}" not found, try pulling it first'}
            self.transport.write(answer(404, b"Not Found", json.dumps(error).encode()))
        return model

    def load(self, body: dict[str, Any]) -> None:
        """A request without a prompt: to have the model loaded, unless it is one for embeddings."""
        model = self.model(body)
        if model is not None and not model.output:
            error = {"error": f'"{body["model"]}" does not support generate'}
            self.transport.write(answer(400, b"Bad Request", json.dumps(error).encode()))
        elif model is not None:
            self.fleet.engine.catch_up()
            self.job = Job(model, 0, 1, 1, began=lambda: None, ended=self.loaded)
            self.server.submit(self.job)

    def infer(self, body: dict[str, Any], *, embedding: bool) -> None:
        model = self.model(body)
        if model is None:
            return
        truth = Truth.of(body)
        self.fleet.engine.catch_up()
        began, ended = (lambda: None, self.embedded) if embedding else (self.began, self.ended)
        self.job = Job(model, truth.conversation, truth.prompt, truth.output, began, ended)
        if isinstance(self.server, Host):
            self.visit = Visit(truth.number, self.fleet.hosts.index(self.server), self.fleet.engine.now)
            self.fleet.visits.append(self.visit)
        self.server.submit(self.job)

    def began(self) -> None:
        assert self.job is not None
        name, message = self.job.model.name, {"role": "assistant", "content": "Well"}
        self.transport.write(STREAM_HEAD + chunk({"model": name, "message": message, "done": False}))

    def ended(self, whole: bool) -> None:
        job = self._over(whole)
        if whole:
            self.transport.write(chunk(last_event(job)) + b"0\r\n\r\n")

    def embedded(self, whole: bool) -> None:
        job = self._over(whole)
        if whole:
            self.transport.write(answer(200, b"OK", json.dumps(vectors(job)).encode()))

    def loaded(self, whole: bool) -> None:
        job = self._over(whole)
        if whole:
            event = {"model": job.model.name, "response": "", "done": True, "done_reason": "load"}
            self.transport.write(answer(200, b"OK", json.dumps(event).encode()))

    def _over(self, whole: bool) -> Job:
        job, self.job = self.job, None
        assert job is not None
        if not whole:
            if self.visit is not None:
                self.visit.cancelled = self.fleet.engine.now
            self.reset()
        return job


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


def vectors(job: Job) -> dict[str, Any]:
    """The answer to /api/embed with a single input; a vector as long as those of small models."""
    return {
        "model": job.model.name,
        "embeddings": [[0.03608439] * 768],
        "total_duration": round((job.finished - job.arrived) * NANOSECONDS),
        "load_duration": round(max(0.02, job.ready - job.arrived) * NANOSECONDS),
        "prompt_eval_count": job.prompt,
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
