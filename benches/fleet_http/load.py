"""The clients: each request of a trace is sent at its time, over a connection of its own."""

from __future__ import annotations

import asyncio
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import httpx

from ollama_balancer.lab.simulation import IN_TIME, PATIENCE
from ollama_balancer.lab.workload import Request

OK = b"HTTP/1.1 200"
END = b"\r\n0\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Kind:
    """Of requests: their path, and by what an answer's first token and its end are known."""

    path: bytes
    first: bytes
    last: bytes


CHAT = Kind(b"/api/chat", b'"message"', b'"done": true')
EMBEDDING = Kind(b"/api/embed", b'"embeddings"', b'"prompt_eval_count"')
OPENAI = {
    CHAT: Kind(b"/v1/chat/completions", b'"delta"', b"data: [DONE]"),
    EMBEDDING: Kind(b"/v1/embeddings", b'"embedding"', b'"usage"'),
}
"""The same by OpenAI's API."""


@dataclass(frozen=True)
class Figures:
    """What became of the requests that came after the warm-up."""

    asked: int
    refused: int
    """Not answered with 200, or not whole by the end of the run."""
    loads: float
    """For 1,000 requests."""
    behind: float
    """Simulated seconds by which the latest request was sent late."""


class Call(asyncio.Protocol):
    """One request. A client has patience until the first token only."""

    def __init__(self, request: bytes, patience: float, kind: Kind = CHAT) -> None:
        self.loop = asyncio.get_running_loop()
        self.over = self.loop.create_future()
        self.request = request
        self.patience = patience
        self.kind = kind
        self.sent: float = self.loop.time()
        self.first: float | None = None
        self.ended: float | None = None
        self.whole = self.gave_up = False
        self.buffer = b""

    @property
    def seconds_to_first(self) -> float:
        """Of one that had none, until the client gave up; where clients never do, until the request ended."""
        if self.first is not None:
            return self.first - self.sent
        if self.patience < math.inf:
            return self.patience
        return (self.ended or self.loop.time()) - self.sent

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
        if self.first is None and self.buffer.startswith(OK) and self.kind.first in self.buffer:
            self.first = self.loop.time()
            self.timer.cancel()
        if self._at_end():
            self.whole = self.buffer.startswith(OK) and self.kind.last in self.buffer
            self.transport.close()

    def _at_end(self) -> bool:
        head, blank, body = self.buffer.partition(b"\r\n\r\n")
        length = LENGTH.search(head + b"\r\n") if blank else None
        return self.buffer.endswith(END) if length is None else len(body) >= int(length[1])

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        self.ended = self.loop.time()
        if not self.over.done():
            self.over.set_result(None)


@dataclass(frozen=True)
class Message:
    """A request as it is sent."""

    number: int
    """In the trace."""
    request: Request
    body: bytes
    kind: Kind = CHAT

    def http(self, key: str | None = None) -> bytes:
        head = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" % self.kind.path
        if key is not None:
            head += b"Authorization: Bearer %b\r\n" % key.encode()
        return head + b"Content-Length: %d\r\n\r\n%b" % (len(self.body), self.body)

    @property
    def openai(self) -> Message:
        """The same by OpenAI's API."""
        streamed = self.body[:-1] + b', "stream": true}'
        return replace(self, body=streamed if self.kind is CHAT else self.body, kind=OPENAI[self.kind])


@dataclass(frozen=True)
class Sent:
    """What came of the requests that were sent."""

    calls: dict[int, Call]
    """By the request's number in the trace, of those after the warm-up."""
    speed: float
    start: float
    """The loop's time at the first moment of the trace."""
    started: float
    """The hosts' time then, in simulated seconds."""
    loads: int
    """Of models, after the warm-up."""
    behind: float
    """Simulated seconds by which the latest request was sent late."""
    again: int
    """How many were sent once more, since the answer was not whole."""

    @property
    def first(self) -> dict[int, float]:
        """Simulated seconds to the first token; of those that had none, until they were given up."""
        return {number: call.seconds_to_first * self.speed for number, call in self.calls.items()}

    @property
    def good(self) -> set[int]:
        """Those with their first token in time, and served whole."""
        return {number for number, first in self.first.items() if first <= IN_TIME and self.calls[number].whole}

    def ended(self, number: int) -> float:
        """When the answer to that request was whole, in simulated seconds; infinite: it never was."""
        call = self.calls.get(number)
        return (call.ended - self.start) * self.speed if call and call.whole and call.ended else math.inf

    def figures(self, numbers: Iterable[int]) -> Figures:
        """Of these requests."""
        calls = [self.calls[number] for number in numbers if number in self.calls]
        return Figures(
            asked=len(calls),
            refused=sum(not call.whole and not call.gave_up for call in calls),
            loads=1000 * self.loads / max(1, len(calls)),
            behind=self.behind,
        )


class Clients:
    """Who sends requests to `port`. `fleet` is the port at which the hosts tell what goes on, and are told. With a key
    they use OpenAI's API.
    """

    def __init__(self, port: int, fleet: int, speed: float, key: str | None = None) -> None:
        self.port = port
        self.key = key
        self.speed = speed
        self.calls: dict[int, Call] = {}
        self.behind = 0.0
        self.again = 0
        self._fleet = httpx.AsyncClient(base_url=f"http://127.0.0.1:{fleet}", trust_env=False, verify=False)

    async def __aenter__(self) -> Self:
        self.loop = asyncio.get_running_loop()
        await self.loads()  # to be connected
        self.started = float((await self.told("/now"))["now"])
        self.start = self.loop.time()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._fleet.aclose()

    async def told(self, path: str) -> dict[str, Any]:
        answer = await self._fleet.get(path)
        told: dict[str, Any] = answer.raise_for_status().json()
        return told

    async def tell(self, path: str, message: dict[str, Any]) -> None:
        (await self._fleet.post(path, json=message)).raise_for_status()

    async def loads(self) -> int:
        return int((await self.told("/loads"))["loads"])

    async def loads_at(self, at: float) -> int:
        await self.until(at)
        return await self.loads()

    @property
    def now(self) -> float:
        """In simulated seconds from the start."""
        return (self.loop.time() - self.start) * self.speed

    async def until(self, at: float) -> float:
        """Wait for that moment; by how many seconds it was missed."""
        await asyncio.sleep(max(0.0, (at - self.now) / self.speed))
        return self.now - at

    async def ask(
        self, message: Message, patience: float = PATIENCE, *, counts: bool = True, since: float | None = None
    ) -> Call:
        """Send a request and wait for its end; `since`: the loop's time when it should have been answered first."""
        message = message if self.key is None else message.openai
        call = Call(message.http(self.key), patience / self.speed, message.kind)
        call.sent = since or call.sent
        if counts:
            self.calls[message.number] = call
        # A client of its own address each, where the system has them: the balancer's line is fair to clients.
        client = int(message.request.client.lstrip("c"))
        address = (f"127.0.0.{client + 2}", 0) if sys.platform == "linux" else None
        try:
            transport, _ = await self.loop.create_connection(lambda: call, "127.0.0.1", self.port, local_addr=address)
        except OSError:
            call.ended = self.loop.time()
            return call
        try:
            await call.over
        finally:
            transport.abort()
        return call

    def sent(self, loads: int) -> Sent:
        return Sent(self.calls, self.speed, self.start, self.started, loads, self.behind, self.again)


async def open_loop(
    clients: Clients,
    messages: Iterable[Message],
    warm_up: float,
    patience: float = PATIENCE,
    limit: float = 2 * PATIENCE,
) -> None:
    """Send each request at its time, and wait for the answers, `limit` seconds after the last one at most."""
    tasks: list[asyncio.Task[Call]] = []
    for message in messages:
        at = message.request.at
        clients.behind = max(clients.behind, await clients.until(at))
        tasks.append(asyncio.create_task(clients.ask(message, patience, counts=at >= warm_up)))
    await finished(tasks, limit / clients.speed)


async def finished(tasks: Sequence[asyncio.Task[Any]], seconds: float) -> None:
    """Wait for them, and cancel those that take longer."""
    if not tasks:
        return
    _, unfinished = await asyncio.wait(tasks, timeout=seconds)
    for task in unfinished:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


def percentile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else math.nan
