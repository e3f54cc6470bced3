"""A byte fuzz of a real mitmdump: clients that send what is no HTTP, and hosts that answer with it.

After every batch of cases the process has to live, its log to be without a traceback, and a normal request to get
through; at the end nothing may be in flight, and the memory not have grown. A batch that fails is sent again case by
case to fresh proxies, so that what is printed is mostly the one input that does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import batched, chain, count
from pathlib import Path

import psutil

from tests.e2e.harness import TOKEN, Hosts, Proxy, running_proxy, wait_until
from tests.fuzz.cases import Case, case, kept, shown

BATCH = 48
AT_ONCE = 16
HOSTS = 8
QUIET = 0.25
"""Seconds without a byte after which a client leaves."""
LONGEST = 2.0
WARM_UP = 4
"""Batches after which the memory is looked at first."""
MAX_GROWTH = 96 * 1024 * 1024
"""Bytes that the process may grow by afterwards."""

_BAD = re.compile(r"Traceback|has crashed|never retrieved|Exception in callback|Addon error", re.IGNORECASE)

_TAGS = b'{"models":[{"name":"tiny-a:latest"},{"name":"m:latest"}]}'
_OWN = {b"/api/tags": _TAGS, b"/api/ps": b'{"models":[]}', b"/api/version": b'{"version":"0.33.0"}'}
_REQUEST = b'{"model":"m","prompt":"x","stream":%s}'


class BrokenError(Exception):
    """What must not be has happened."""


class FuzzHost:
    """Answers as it is told to by `script`, else well; `lists` is its answer to what the balancer asks for itself."""

    def __init__(self) -> None:
        self.script: Case | None = None
        self.lists: Case | None = None
        self.used = False
        """Whether what it was told to answer has gone out."""
        self.word = b""
        self.name = ""
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.WriteTransport] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0, limit=4 * 1024 * 1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for transport in self._open:
            transport.abort()
        await self._server.wait_closed()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer.transport)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._answer(reader, writer):
                pass
        writer.close()
        self._open.discard(writer.transport)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        own = b"\r\nuser-agent: ollama-balancer\r\n" in head.lower()
        script = self.lists if own else self.script
        if script is not None:
            self.used = True
            for piece in script.pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            return not script.closes
        path = head.split(b" ")[1].partition(b"?")[0]
        body = _OWN.get(path, b'{"model":"m","response":"%s","done":true}\n' % self.word)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        return b"transfer-encoding" not in head.lower()


class Fuzz:
    """Sends cases to one proxy; must be used in one event loop."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.statuses: Counter[str] = Counter()
        """Of the answers over HTTP/1.1 that clients got to what they sent."""
        self.answered = 0
        """Cases that a host has sent."""
        self._names = count()
        self._hosts: list[FuzzHost] = []
        self._free: asyncio.Queue[FuzzHost] = asyncio.Queue()
        self._tls = ssl.create_default_context()
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE
        self._tls.set_alpn_protocols(["h2"])

    async def start(self) -> None:
        for _ in range(HOSTS):
            host = FuzzHost()
            await host.start()
            self._hosts.append(host)
            await self._register(host)
            self._free.put_nowait(host)

    async def stop(self) -> None:
        for host in self._hosts:
            await self._control("DELETE", f"/api/agents/{host.name}")
            await host.stop()

    async def send(self, batch: Iterable[Case]) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def limited(each: Case) -> None:
            async with room:
                await self._send(each)

        async with asyncio.TaskGroup() as tasks:
            for each in batch:
                tasks.create_task(limited(each))

    async def _send(self, each: Case) -> None:
        if each.side == "http2":
            await self._exchange(each.pieces, self._tls)
        elif each.side == "http1":
            answer = await self._exchange(each.pieces)
            self.statuses[answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "none"] += 1
        else:
            host = await self._free.get()
            host.used = False
            try:
                if each.side == "host":
                    await self._answer_with(host, each)
                else:
                    await self._list_with(host, each)
            finally:
                self.answered += host.used
                self._free.put_nowait(host)

    async def _exchange(
        self, pieces: Iterable[bytes], tls: ssl.SSLContext | None = None, quiet: float = QUIET
    ) -> bytes:
        """What comes back until nothing more does."""
        received = bytearray()
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy.port, ssl=tls)
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                async with asyncio.timeout(LONGEST):
                    while data := await asyncio.wait_for(reader.read(65536), quiet):
                        received += data
            finally:
                writer.transport.abort()
        return bytes(received)

    async def _control(self, method: str, path: str, body: bytes = b"") -> bytes:
        return await self._exchange((_request(method, path, body),), quiet=LONGEST)

    async def _answer_with(self, host: FuzzHost, each: Case) -> None:
        """Have a host answer with it, and then ask that host for a word that only a right answer has."""
        host.script = each
        stream = b"true" if each.closes else b"false"
        await self._exchange((_request("POST", "/api/generate", _REQUEST % stream, pin=host.name),))
        host.script, host.word = None, each.name.encode()
        answer = await self._exchange(
            (_request("POST", "/api/generate", _REQUEST % b"false", pin=host.name),), quiet=LONGEST
        )
        if answer.startswith(b"HTTP/1.1 200 "):
            if b'"response":"%s"' % host.word not in answer:
                raise BrokenError(f"after case {each.name}, another request was answered with {answer!r}")
        else:  # it is ejected, or something was still to come of the answer before
            await self._register(host)

    async def _list_with(self, host: FuzzHost, each: Case) -> None:
        """Have a host answer with it when it is asked what it has."""
        host.lists = each
        await self._register(host, patience=0.3)
        host.lists = None
        await self._register(host)

    async def _register(self, host: FuzzHost, patience: float = LONGEST) -> None:
        """Under a new name, so that nothing is held against it, and wait until it is used."""
        if host.name:
            await self._control("DELETE", f"/api/agents/{host.name}")
        host.name = f"host-{next(self._names)}"
        body = b'{"name":"%s","url":"http://127.0.0.1:%d"}' % (host.name.encode(), host.port)
        await self._control("POST", "/api/agents", body)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while b'"status":"online"' not in await self._control("GET", f"/api/agents/{host.name}"):
                    pass


def _request(method: str, path: str, body: bytes, pin: str = "") -> bytes:
    fields = f"X-Balancer-Agent: {pin}\r\n" if pin else f"Authorization: Bearer {TOKEN}\r\n"
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def check(proxy: Proxy) -> None:
    """BrokenError: the proxy is not well."""
    status = proxy.process.poll()
    if status is not None:
        raise BrokenError(f"the process has ended with {status}: {proxy.log[-5000:]}")
    log = proxy.log
    if bad := _BAD.search(log):
        raise BrokenError(f"in the log: {log[max(0, bad.start() - 1000) : bad.start() + 5000]}")
    answer = proxy.generate()
    if answer.status_code != 200:
        raise BrokenError(f"a normal request is answered with {answer.status_code}: {answer.text[:1000]}")


def check_end(proxy: Proxy) -> None:
    """The same once all is over: nothing is held any more."""
    check(proxy)
    wait_until(lambda: not any(proxy.introspect()["in_flight"].values()), "no request is in flight")
    wait_until(lambda: proxy.introspect()["contexts"] <= 1, "no request is left")
    check(proxy)


@contextlib.contextmanager
def _proxy(folder: Path, hosts: Hosts, *arguments: str) -> Iterator[Proxy]:
    good = hosts.start("good")
    folder.mkdir()
    with running_proxy(folder, "--set", f"balancer_agents=good={good.url}", *arguments) as proxy:
        proxy.wait_online("good")
        yield proxy


def resident(proxy: Proxy) -> int:
    size: int = psutil.Process(proxy.process.pid).memory_info().rss
    return size


class Run:
    """One proxy, and the batches that are sent to it. `batch` is the last one."""

    def __init__(self, proxy: Proxy, deadline: float | None = None) -> None:
        self.proxy = proxy
        self.deadline = deadline
        self.batch: tuple[Case, ...] = ()
        self.sent: Counter[str] = Counter()
        self.growth = 0

    async def send(self, cases: Iterable[Case]) -> str:
        """What was done. BrokenError, AssertionError: what must not be has happened."""
        fuzz = Fuzz(self.proxy)
        before = None
        try:
            await fuzz.start()
            for number, self.batch in enumerate(batched(cases, BATCH)):
                await fuzz.send(self.batch)
                check(self.proxy)
                self.sent.update(each.side for each in self.batch)
                if number == WARM_UP:
                    before = resident(self.proxy)
                if self.deadline is not None and time.monotonic() > self.deadline:
                    break
        finally:
            await fuzz.stop()
        check_end(self.proxy)
        growth = resident(self.proxy) - before if before is not None else 0
        if growth > MAX_GROWTH:
            raise BrokenError(f"the process has grown by {growth} bytes since the first cases")
        return (
            f"cases: {dict(self.sent)}, {fuzz.answered} sent by hosts\nanswers: {dict(sorted(fuzz.statuses.items()))}\n"
            f"growth: {growth / 1e6:.1f} MB"
        )


def _alone(folder: Path, hosts: Hosts, batch: Iterable[Case], *arguments: str) -> list[Case]:
    """Those of the batch that break a proxy of their own."""
    guilty = []
    for number, each in enumerate(batch):
        try:
            with _proxy(folder / f"alone-{number}", hosts, *arguments) as proxy:
                asyncio.run(Run(proxy).send([each]))
        except (BrokenError, ExceptionGroup, AssertionError):
            guilty.append(each)
    return guilty


def run(
    folder: Path, *arguments: str, seed: int, cases: int | None = None, seconds: float | None = None, first: int = 0
) -> str:
    """Send that many cases, or for that long; what was done. AssertionError, with the input, where something broke.

    `arguments` are mitmdump's.
    """
    numbers = count(first) if cases is None else range(first, first + cases)
    made = chain(kept(), (case(seed, number) for number in numbers))
    hosts = Hosts()
    try:
        with _proxy(folder / "proxy", hosts, *arguments) as proxy:
            this = Run(proxy, None if seconds is None else time.monotonic() + seconds)
            try:
                return asyncio.run(this.send(made))
            except (BrokenError, ExceptionGroup, AssertionError) as e:
                guilty = _alone(folder, hosts, this.batch, *arguments)
                inputs = "\n\n".join(shown(each) for each in guilty or this.batch)
                again = f"python -m tests.fuzz proxy --seed {seed} --first {this.batch[0].name} --cases {BATCH}"
                reasons = e.exceptions if isinstance(e, ExceptionGroup) else [e]
                raise AssertionError(f"{reasons}\n\nagain: {again}\n\n{inputs}") from e
    finally:
        hosts.stop()
