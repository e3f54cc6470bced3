"""What the tests here share: a raw HTTP client, a clock that stands still, and waiting for a condition."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ollama_balancer.simulator import SimulatedModel, SimulatedOllama, Timing

PATIENCE = 60.0
"""Seconds after which a test gives up; none waits for it when all is well."""
INSTANT = Timing(time_scale=0, num_parallel=1000, max_loaded=3)
MODELS = (
    SimulatedModel("llama3.2"),
    SimulatedModel("qwen3"),
    SimulatedModel("nomic-embed-text", family="nomic-bert", embedding=True),
)


class StandingClock:
    """Time that passes only by `advance`, and only up to the next sleeper at a time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        entry = (self.now + seconds, asyncio.get_running_loop().create_future())
        self.sleepers.append(entry)
        try:
            await entry[1]
        finally:
            self.sleepers.remove(entry)

    async def advance(self, seconds: float) -> None:
        """Let time pass; whoever wakes runs as far as it gets without sockets."""
        await settle()
        end = self.now + seconds
        while due := [entry for entry in self.sleepers if entry[0] <= end + 1e-9]:
            when, future = min(due, key=lambda entry: entry[0])
            self.now = max(self.now, when)
            future.set_result(None)
            await settle()
        self.now = end


async def settle() -> None:
    """Let all that is ready run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition that sockets decide has come true."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what it waits for is the other side of a socket
            await asyncio.sleep(0.001)


@dataclass
class Response:
    """An answer as it came: `framing` is content-length, chunked, until-close or none; `complete`: ended properly."""

    status_line: str
    headers: list[tuple[str, str]]
    framing: str
    chunks: list[str] = field(default_factory=list)
    body: str = ""
    complete: bool = False

    @property
    def status(self) -> int:
        return int(self.status_line.split()[1])

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The JSON events of a stream, in any format; `[DONE]` as it is."""
        return events_of(self.body)


def events_of(text: str) -> list[Any]:
    lines = [line for line in text.splitlines() if line and not line.startswith("event: ")]
    payloads = [line.removeprefix("data: ") for line in lines]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


class Client:
    """One connection, spoken to by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: list[tuple[str, str]] | None = None,
        version: str = "HTTP/1.1",
    ) -> None:
        """Send a request: a body that isn't bytes goes as JSON, with a Content-Length where none is given."""
        payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = list(headers if headers is not None else [("Host", "sim")])
        if body is not None and not any(name.lower() == "content-length" for name, _ in lines):
            lines.append(("Content-Length", str(len(payload))))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines)
        self.writer.write(f"{method} {path} {version}\r\n{head}\r\n".encode() + payload)
        await self.writer.drain()

    async def head(self) -> Response:
        """Read the status line and the headers."""
        status_line, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
        response = Response(status_line, headers, "until-close")
        if response.header("transfer-encoding") == "chunked":
            response.framing = "chunked"
        elif response.header("content-length") is not None:
            response.framing = "content-length"
        return response

    async def chunk(self) -> str | None:
        """Read one HTTP chunk; None: the last. Raises IncompleteReadError where the stream is cut."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        data = await self.reader.readexactly(size + 2)
        return data[:-2].decode() if size else None

    async def receive(self, method: str = "POST") -> Response:
        """Read a whole answer. A connection that ends before the head raises; one cut later gives what came."""
        async with asyncio.timeout(PATIENCE):
            response = await self.head()
            try:
                if method == "HEAD":
                    response.framing = "none"
                elif response.framing == "content-length":
                    size = int(response.header("content-length") or 0)
                    response.body = (await self.reader.readexactly(size)).decode()
                elif response.framing == "chunked":
                    while (chunk := await self.chunk()) is not None:
                        response.chunks.append(chunk)
                        response.body += chunk
                else:
                    response.body = (await self.reader.read()).decode()
                response.complete = True
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            return response

    async def ask(self, method: str, path: str, body: object = None, **more: Any) -> Response:
        await self.send(method, path, body, **more)
        return await self.receive(method)

    async def ended(self) -> bytes:
        """Read on until the other side ends the connection."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    def abort(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def connected(sim: SimulatedOllama) -> AsyncIterator[Client]:
    """A new connection to a host."""
    reader, writer = await asyncio.open_connection(sim.host, sim.port)
    client = Client(reader, writer)
    try:
        yield client
    finally:
        client.abort()
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def running(timing: Timing = INSTANT, **more: Any) -> AsyncIterator[SimulatedOllama]:
    """A host that is up, by default without any delay."""
    arguments: dict[str, Any] = {"models": MODELS, "timing": timing} | more
    sim = SimulatedOllama(**arguments)
    await sim.start()
    try:
        yield sim
    finally:
        await sim.stop()
        assert (sim.in_flight, sim.running) == (0, 0)


async def ask(sim: SimulatedOllama, method: str, path: str, body: object = None, **more: Any) -> Response:
    """One request on a connection of its own."""
    async with connected(sim) as client:
        return await client.ask(method, path, body, **more)


def chat(prompt: str = "hello", *, model: str = "llama3.2", tokens: int | None = None, **more: Any) -> dict[str, Any]:
    """A chat request's body."""
    options = {} if tokens is None else {"options": {"num_predict": tokens}}
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **options, **more}
