"""A real mitmdump with the balancer, and simulated hosts on real sockets, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import httpx

from ollama_balancer.simulator import SimulatedModel, SimulatedOllama, Timing
from tests.e2e import zygote

ROOT = Path(__file__).resolve().parents[2]
ADDON = ROOT / "addon" / "balancer.py"
INTROSPECTION = Path(__file__).with_name("introspection.py")
TOKEN = "a-token-for-tests"
PATIENCE = 30.0
"""Seconds after which a condition that a test waits for has failed. Nothing waits that long when all is well."""

always: tuple[str, ...] = ()
"""Arguments for every proxy; a fixture sets them."""

QUICK = Timing(load=0.01, prefill_rate=1e6, decode_rate=1000, output_tokens=24, num_parallel=8, max_loaded=4)


def mitmproxy_tool(name: str) -> str:
    """The mitmproxy program of this environment."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is not installed"
    return found


def free_port() -> int:
    """A port that nobody has, below those that the system gives to connections and to others' servers meanwhile."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port


def wait_until[T](condition: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """The condition's value as soon as it is true; an exception of httpx counts as not yet."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = value = condition()
            if value:
                return value
        except httpx.HTTPError as e:
            last = e
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds:g} s; last: {last!r}")


def _comes(output: IO[str], milliseconds: float | None = None) -> bool:
    """Whether there is something to read, or the end, within that time."""
    poll = select.poll()
    poll.register(output, select.POLLIN)
    return bool(poll.poll(milliseconds))


class Proxy:
    """One mitmproxy program with the balancer, as a child process."""

    def __init__(self, process: subprocess.Popen[str] | zygote.Forked, port: int, confdir: Path) -> None:
        self.process = process
        self.port = port
        self.confdir = confdir
        self.url = f"http://127.0.0.1:{port}"
        self.lines: list[str] = []
        self._begun = b""
        self._reading = threading.Lock()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, verify=False)

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as output:
            while not self._ended:
                _comes(output)
                self._take_in()

    def _take_in(self) -> None:
        """All that the program has said until now."""
        output = self.process.stdout
        with self._reading:
            while not self._ended and output and _comes(output, 0):
                said = os.read(output.fileno(), 65536)
                *whole, self._begun = (self._begun + said).split(b"\n")
                self.lines += [line.decode("utf-8", "replace") for line in whole]
                self._ended = not said

    @property
    def log(self) -> str:
        self._take_in()
        with self._reading:
            return "\n".join([*self.lines, self._begun.decode("utf-8", "replace")])

    def control(self, method: str, path: str, body: object = None, *, token: str | None = TOKEN) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        content = body if isinstance(body, bytes) else None
        return self.http.request(
            method, path, headers=headers, content=content, json=None if content is not None else body
        )

    def agents(self) -> dict[str, dict[str, Any]]:
        return {agent["name"]: agent for agent in self.http.get("/api/agents").json()["agents"]}

    def register(self, name: str, url: str) -> str:
        response = self.control("POST", "/api/agents", {"name": name, "url": url})
        assert response.status_code in (200, 201), response.text
        agent_id: str = response.json()["id"]
        return agent_id

    def report(self, agent: str, **fields: Any) -> httpx.Response:
        return self.control("POST", f"/api/agents/{agent}/metrics", report(**fields))

    def wait_online(self, *names: str) -> None:
        wait_until(
            lambda: all(self.agents().get(name, {}).get("status") == "online" for name in names),
            f"agents {names} online",
        )

    def generate(self, model: str = "llama3.2", prompt: str = "hi", **fields: Any) -> httpx.Response:
        headers = fields.pop("headers", {})
        body = {"model": model, "prompt": prompt, "stream": False, **fields}
        return self.http.post("/api/generate", json=body, headers=headers)

    def introspect(self) -> dict[str, Any]:
        """What is alive in the process: tasks, connections, exchanges, in flight (needs INTROSPECTION loaded)."""
        value: dict[str, Any] = self.http.get("/introspection").json()
        return value

    def stop(self) -> int:
        """End it as an operator would; its exit status."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        self._reader.join(PATIENCE)
        return self.process.wait(PATIENCE)


def environment(**extra: str) -> dict[str, str]:
    """The environment for children: none of the user's own settings."""
    env = {key: value for key, value in os.environ.items() if not key.upper().endswith("_PROXY")}
    for name in ("LOAD_BALANCER_MODE", "OLLAMA_BALANCER_TOKEN", "OLLAMA_BALANCER_URL", "OLLAMA_HOST"):
        env.pop(name, None)
    return env | {"PYTHONUNBUFFERED": "1", "COLUMNS": "400"} | extra


def command(
    confdir: Path,
    port: int,
    *arguments: str,
    tool: str = "mitmdump",
    addon: Path = ADDON,
    before: Path | None = None,
) -> list[str]:
    """`before` is a script that is loaded before the balancer."""
    return [
        mitmproxy_tool(tool),
        *(["-s", str(before)] if before else []),
        "-s",
        str(addon),
        "--listen-host",
        "127.0.0.1",
        "-p",
        str(port),
        "--set",
        f"confdir={confdir}",
        *arguments,
    ]


def _started(
    arguments: list[str], env: dict[str, str], cwd: Path, *, by_script: bool
) -> subprocess.Popen[str] | zygote.Forked:
    if not by_script and zygote.available():
        return zygote.start(arguments, env, cwd)
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=cwd)


@contextlib.contextmanager
def running_proxy(
    confdir: Path,
    *arguments: str,
    token: str | None = TOKEN,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    tool: str = "mitmdump",
    addon: Path = ADDON,
    before: Path | None = None,
    by_script: bool = False,
) -> Iterator[Proxy]:
    """A mitmdump (or mitmweb) that listens and has asked its agents once.

    It is forked from a process that has imported all, or started by its own script, as people start it.
    """
    port = free_port()
    given = ["--set", f"balancer_token={token}"] if token else []
    process = _started(
        command(
            confdir, port, "-s", str(INTROSPECTION), *given, *always, *arguments, tool=tool, addon=addon, before=before
        ),
        environment(**(env or {})),
        cwd or confdir,
        by_script=by_script or addon != ADDON or before is not None,
    )
    proxy = Proxy(process, port, confdir)
    try:
        wait_until(lambda: process.poll() is not None or proxy.http.get("/health"), "the proxy listens")
        assert process.poll() is None, proxy.log
        yield proxy
    except BaseException:
        print(proxy.log)
        raise
    finally:
        proxy.stop()


def refused_start(
    confdir: Path,
    *arguments: str,
    env: dict[str, str] | None = None,
    before: Path | None = None,
    by_script: bool = False,
) -> tuple[int, str]:
    """Run a mitmdump that is expected to refuse to start; its exit status and what it says."""
    process = _started(
        command(confdir, free_port(), *arguments, before=before),
        environment(**(env or {})),
        confdir,
        by_script=by_script or before is not None,
    )
    try:
        status = process.wait(2 * PATIENCE)  # it may import everything first
    finally:
        process.kill()
    assert process.stdout
    with process.stdout as output:
        return status, output.read()


def report(
    cpu: float = 10.0, memory: float = 20.0, active: int = 0, models: list[str] | None = None, **fields: Any
) -> dict[str, Any]:
    """The body of a report."""
    body: dict[str, Any] = {
        "cpu_usage": cpu,
        "memory_usage": memory,
        "active_requests": active,
        "timestamp": datetime.now(UTC).isoformat(),
        **fields,
    }
    if models is not None:
        body["models"] = [{"name": name} for name in models]
    return body


class Hosts:
    """Simulated Ollama hosts in an event loop of their own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.all: list[SimulatedOllama] = []
        self.servers: list[asyncio.Server] = []
        """Those of hosts that are no simulated ones."""
        self.writers: list[asyncio.StreamWriter] = []
        """To whoever has connected to those."""

    def run[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        return future.result(PATIENCE)

    def start(
        self, name: str = "host", *models: str, timing: Timing = QUICK, port: int = 0, version: str = "0.33.0"
    ) -> SimulatedOllama:
        host = SimulatedOllama(
            models=[SimulatedModel(model) for model in models or ("llama3.2",)],
            timing=timing,
            name=name,
            port=port,
            version=version,
        )
        self.run(host.start())
        self.all.append(host)
        return host

    def kill(self, host: SimulatedOllama) -> None:
        self.run(host.kill())

    def restart(self, host: SimulatedOllama) -> None:
        self.run(host.start())

    def stop(self) -> None:
        for host in self.all:
            self.run(host.stop())
        self.run(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()

    async def _end(self) -> None:
        """Have every connection closed while there is a loop that can do it."""
        for server in self.servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self.servers:
            await server.wait_closed()


@contextlib.contextmanager
def silent_listener(address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Drops each attempt to connect, as a host does that is switched off: its backlog is full. Gives its port."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind((address, port))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()[1]


class RawHost:
    """A host that does to each connection what the test says: for wire behaviour that no Ollama shows."""

    def __init__(
        self, loop_owner: Hosts, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ):
        self.owner = loop_owner

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            loop_owner.writers.append(writer)
            try:
                await serve(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        async def start() -> asyncio.Server:
            return await asyncio.start_server(handle, "127.0.0.1", 0)

        self.server = loop_owner.run(start())
        loop_owner.servers.append(self.server)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        async def close() -> None:
            self.server.close()

        self.owner.run(close())


def listing_host(
    hosts: Hosts,
    receive: Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]],
    model: str = "m",
) -> RawHost:
    """A host that is well, has the model, and takes prompts as the test says; it is given the length of the body."""
    lists = b'{"version":"0.33.0","models":[{"name":"%s"}]}' % model.encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if head.startswith(b"post"):
                await receive(reader, writer, int(head.partition(b"content-length:")[2].split()[0]))
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(lists), lists))

    return RawHost(hosts, serve)


def stream_lines(proxy: Proxy, path: str, body: object, seen: queue.Queue[bytes] | None = None) -> list[dict[str, Any]]:
    """POST and read an NDJSON stream to its end."""
    lines: list[dict[str, Any]] = []
    with proxy.http.stream("POST", path, json=body) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if seen is not None:
                seen.put(line.encode())
            lines.append(json.loads(line))
    return lines
