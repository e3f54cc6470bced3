"""The clients: each request of the trace is sent at its time, over a connection of its own."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from ollama_balancer.lab.simulation import IN_TIME, PATIENCE
from ollama_balancer.lab.workload import Request, Workload

LAST = b'"done": true'
END = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Figures:
    """What became of the requests that came after the warm-up. Times are in simulated seconds."""

    asked: int
    goodput: float
    """Percent of them: the first token in time, and served whole."""
    p50: float
    """Until the first token; of those that had none, until they were given up."""
    p95: float
    p99: float
    loads: float
    """For 1,000 requests."""
    refused: int
    """Not answered with 200, or not whole by the end of the run."""
    behind: float
    """By how much the latest request was sent late."""


class Call(asyncio.Protocol):
    """One request. A client has patience until the first token only."""

    def __init__(self, request: bytes, patience: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.over = self.loop.create_future()
        self.request = request
        self.patience = patience
        self.sent: float = self.loop.time()
        self.first: float | None = None
        self.whole = self.gave_up = False
        self.buffer = b""

    @property
    def seconds_to_first(self) -> float:
        return self.patience if self.first is None else self.first - self.sent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)
        self.timer = self.loop.call_at(self.sent + self.patience, self.give_up)

    def give_up(self) -> None:
        self.gave_up = True
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.first is None and self.buffer.startswith(b"HTTP/1.1 200") and b'"message"' in self.buffer:
            self.first = self.loop.time()
            self.timer.cancel()
        if self.buffer.endswith(END):
            self.whole = LAST in self.buffer
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        if not self.over.done():
            self.over.set_result(None)


def http(body: bytes) -> bytes:
    head = b"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


@dataclass(frozen=True)
class Sent:
    """What came of the requests that were sent."""

    calls: dict[int, Call]
    """By the request's number in the trace, of those after the warm-up."""
    speed: float
    loads: int
    """Of models, meanwhile."""
    behind: float
    """Seconds by which the latest request was sent late."""
    started: float
    """The hosts' time at the start, in simulated seconds."""

    @property
    def first(self) -> dict[int, float]:
        """Simulated seconds to the first token; of those that had none, until they were given up."""
        return {number: call.seconds_to_first * self.speed for number, call in self.calls.items()}

    @property
    def good(self) -> set[int]:
        """Those with their first token in time, and served whole."""
        return {number for number, first in self.first.items() if first <= IN_TIME and self.calls[number].whole}

    @property
    def figures(self) -> Figures:
        first, asked = sorted(self.first.values()), max(1, len(self.calls))
        return Figures(
            asked=len(self.calls),
            goodput=100 * len(self.good) / asked,
            p50=percentile(first, 0.5),
            p95=percentile(first, 0.95),
            p99=percentile(first, 0.99),
            loads=1000 * self.loads / asked,
            refused=sum(not call.whole and not call.gave_up for call in self.calls.values()),
            behind=self.behind * self.speed,
        )


async def send(port: int, fleet: int, workload: Workload, bodies: Sequence[bytes], speed: float) -> Sent:
    """Send all requests to that port; `fleet` is the one that tells how many loads there were."""
    loop = asyncio.get_running_loop()
    calls: dict[int, Call] = {}
    tasks: list[asyncio.Task[None]] = []

    async def one(number: int, request: Request, body: bytes) -> None:
        call = Call(http(body), PATIENCE / speed)
        if request.at >= workload.warm_up:
            calls[number] = call
        # A client of its own address each, where the system has them: the balancer's line is fair to clients.
        address = (f"127.0.0.{int(request.client.lstrip('c')) + 2}", 0) if sys.platform == "linux" else None
        await loop.create_connection(lambda: call, "127.0.0.1", port, local_addr=address)
        await call.over

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{fleet}", trust_env=False, verify=False) as client:

        async def loads() -> int:
            return int((await client.get("/loads")).json()["loads"])

        await loads()  # to be connected
        started = float((await client.get("/now")).json()["now"])
        start, behind = loop.time(), 0.0
        before: asyncio.Task[int] | None = None
        for number, (request, body) in enumerate(zip(workload.requests, bodies, strict=True)):
            if before is None and request.at >= workload.warm_up:
                before = asyncio.create_task(loads())
            due = start + request.at / speed
            await asyncio.sleep(max(0.0, due - loop.time()))
            behind = max(behind, loop.time() - due)
            tasks.append(asyncio.create_task(one(number, request, body)))
        _, unfinished = await asyncio.wait(tasks, timeout=2 * PATIENCE / speed)
        for task in unfinished:
            task.cancel()
        loaded = await loads() - (await before if before else 0)
    await asyncio.gather(*tasks, return_exceptions=True)
    return Sent(calls, speed, loaded, behind, started)


def percentile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else math.nan
