"""What is known of the Ollama server's process, and whether it can be reached from elsewhere."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent_reporter.addresses import Endpoint
from agent_reporter.collect import Collection
from agent_reporter.collectors import COLLECTORS, Host
from agent_reporter.collectors import reach as reach_module
from agent_reporter.collectors.process import RECHECK_SECONDS, Server, ServerProcess, choose
from agent_reporter.collectors.reach import ReachCollector, local_address_toward, on_loopback_only
from agent_reporter.collectors.server import ServerCollector, parse

from .stubs import free_port

HOST = Host(ollama=Endpoint("http", "127.0.0.1", 11434))


@pytest.mark.parametrize(
    ("environment", "fields"),
    [
        ({}, {}),
        ({"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_MAX_LOADED_MODELS": " 3 "}, {"num_parallel": 4, "max_loaded_models": 3}),
        ({"OLLAMA_NUM_PARALLEL": "0", "OLLAMA_MAX_LOADED_MODELS": "many"}, {}),
        ({"OLLAMA_NUM_PARALLEL": "-1"}, {}),
        ({"OLLAMA_NUM_PARALLEL": "9" * 400}, {}),
        ({"OLLAMA_NUM_PARALLEL": "٤", "SECRET": "x"}, {}),
    ],
)
def test_of_the_environment_only_the_servers_settings_are_read(
    environment: dict[str, str], fields: dict[str, object]
) -> None:
    assert parse(environment) == fields


SERVE = """
import ctypes, http.server, os, sys
ctypes.CDLL(None).prctl(15, b"ollama", 0, 0, 0)  # PR_SET_NAME

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"version": "0.33.0", "models": []}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
"""A server that answers as Ollama does, in a process that is called as Ollama's is."""


class Servers:
    """Processes that are called ollama, were started as `ollama serve`, and listen."""

    def __init__(self, folder: Path) -> None:
        (folder / "serve").write_text(SERVE)
        self.folder = folder
        self.running: list[subprocess.Popen[str]] = []

    def start(self, port: int = 0, **settings: str) -> tuple[int, psutil.Process]:
        """Its port and its process; with these variables."""
        process = subprocess.Popen(
            [sys.executable, "serve"],
            cwd=self.folder,
            env={"PORT": str(port), "SECRET": "x", **settings},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        assert process.stdout
        return int(process.stdout.readline()), psutil.Process(process.pid)

    def processes(self) -> list[psutil.Process]:
        """Those that run: a machine may have an Ollama of its own."""
        return [psutil.Process(each.pid) for each in self.running if each.poll() is None]

    def stop(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    if sys.platform != "linux":
        pytest.skip("starts a process by another name")
    servers = Servers(tmp_path)
    yield servers
    servers.stop()


def there(port: int) -> Endpoint:
    return Endpoint("http", "127.0.0.1", port)


@pytest.mark.e2e
def test_the_servers_process_is_found_and_asked_once(servers: Servers) -> None:
    asked = 0
    port, server = servers.start(OLLAMA_NUM_PARALLEL="6", OLLAMA_MAX_LOADED_MODELS="2")

    def processes() -> list[psutil.Process]:
        nonlocal asked
        asked += 1
        return servers.processes()

    async def run() -> list[Any]:
        found = ServerProcess(processes)
        assert dict(await found.settings(there(port))) == {"OLLAMA_NUM_PARALLEL": "6", "OLLAMA_MAX_LOADED_MODELS": "2"}
        collector = ServerCollector(Host(there(port), server=found))
        told = [await collector.collect(), await collector.collect()]
        server.kill()
        server.wait(10)
        return [*told, await collector.collect()]

    settings = {"num_parallel": 6, "max_loaded_models": 2}
    assert asyncio.run(run()) == [settings, settings, {}]
    assert asked == 2


@pytest.mark.e2e
def test_of_several_servers_it_is_the_one_that_listens_on_the_port(servers: Servers) -> None:
    ports = {servers.start(OLLAMA_NUM_PARALLEL=str(number))[0]: number for number in (1, 2, 3)}

    async def told(port: int, host: str = "127.0.0.1") -> object:
        endpoint = Endpoint("http", host, port)
        found = ServerProcess(servers.processes)
        return dict(await ServerCollector(Host(endpoint, server=found)).collect())

    for port, number in ports.items():
        assert asyncio.run(told(port)) == {"num_parallel": number}
    assert asyncio.run(told(free_port())) == {}
    assert asyncio.run(told(next(iter(ports)), "192.0.2.1")) == {}  # that is another machine


def seen(port: int | None, *, host: str | None = "", elsewhere: bool = False) -> Server:
    """What the system shows of a server; None: it may not be read."""
    settings = None if host is None else {"OLLAMA_HOST": host} if host else {}
    return Server(psutil.Process(), settings, None if port is None else frozenset({port}), elsewhere)


@pytest.mark.parametrize(
    ("servers", "chosen"),
    [
        ([seen(1), seen(11434), seen(2)], 1),
        ([seen(1), seen(2)], None),
        ([seen(1, host=":11434"), seen(11434, host=":1")], 1),  # where it listens is what counts
        ([seen(None, host=":1"), seen(None), seen(None, host="0.0.0.0:2")], 1),  # the default port
        ([seen(None, host="10.0.0.1:11434"), seen(None, host="http://x")], 0),
        ([seen(None, host=""), seen(None, host=":11434")], None),  # either may be it
        ([seen(11434, elsewhere=True)], 0),  # in a container
        ([seen(11434, elsewhere=True), seen(11434, elsewhere=True)], None),
        ([seen(11434, elsewhere=True), seen(11434)], 1),
        ([seen(None, host=None)], 0),  # another user's
        ([seen(None, host=None), seen(11434)], 1),
        ([], None),
    ],
)
def test_what_the_system_shows_of_servers_tells_which_is_the_one(servers: list[Server], chosen: int | None) -> None:
    assert choose(servers, 11434) is (None if chosen is None else servers[chosen])


@pytest.mark.e2e
def test_settings_are_read_again_with_the_first_answer_after_a_restart(servers: Servers) -> None:
    port, server = servers.start(OLLAMA_NUM_PARALLEL="1")
    now = 0.0
    host = Host(there(port), server=ServerProcess(servers.processes, clock=lambda: now))
    wanted = {name: COLLECTORS[name] for name in COLLECTORS if name in ("ollama", "server")}
    report = Collection(host, wanted)

    async def run() -> list[tuple[bool | None, int | None]]:
        nonlocal now, server
        told = []
        for step in range(6):
            if step in (1, 4):
                server.kill()
                server.wait(10)
            if step == 3:
                _, server = servers.start(port, OLLAMA_NUM_PARALLEL="2")
            if step == 4:  # so soon that no report sees it down
                _, server = servers.start(port, OLLAMA_NUM_PARALLEL="3")
            made = await report()
            told.append((made.ollama_ok, made.num_parallel))
            now += 1
        return told

    expected = [(True, 1), (False, None), (False, None), (True, 2), (True, 3), (True, 3)]
    assert asyncio.run(run()) == expected


def test_processes_that_may_not_be_looked_at_are_passed_over() -> None:
    class Foreign:
        def name(self) -> str:
            return "ollama"

        def cmdline(self) -> list[str]:
            raise psutil.AccessDenied(1)

    class Gone(Foreign):
        def name(self) -> str:
            raise psutil.NoSuchProcess(1)

    found = ServerProcess(lambda: [Foreign(), Gone()])  # type: ignore[list-item]
    assert asyncio.run(found.settings(HOST.ollama)) == {}


def test_a_server_whose_environment_is_another_users_is_not_looked_for_again() -> None:
    asked = 0

    class Closed:
        pid = -1

        def name(self) -> str:
            return "ollama"

        def cmdline(self) -> list[str]:
            return ["/usr/bin/ollama", "serve"]

        def environ(self) -> dict[str, str]:
            raise psutil.AccessDenied(1)

        def net_connections(self, kind: str) -> list[object]:
            raise psutil.AccessDenied(1)

        def is_running(self) -> bool:
            return True

    def processes() -> Iterator[Any]:
        nonlocal asked
        asked += 1
        yield Closed()

    async def run() -> None:
        found = ServerProcess(processes, clock=lambda: float(asked) * 1e6)
        assert [await found.settings(HOST.ollama) for _ in range(3)] == [{}, {}, {}]

    asyncio.run(run())
    assert asked == 1


def test_a_server_that_is_not_there_is_looked_for_again_only_after_a_while() -> None:
    asked = 0
    now = 0.0

    def processes() -> list[Any]:
        nonlocal asked
        asked += 1
        return []

    async def run() -> list[int]:
        nonlocal now
        found = ServerProcess(processes, clock=lambda: now)
        looks = []
        for at in (0.0, 10.0, RECHECK_SECONDS - 1, RECHECK_SECONDS, RECHECK_SECONDS + 1):
            now = at
            await found.settings(HOST.ollama)
            looks.append(asked)
        return looks

    assert asyncio.run(run()) == [1, 1, 1, 2, 2]


def own_address() -> str:
    try:
        return local_address_toward("192.0.2.1")
    except OSError:
        pytest.skip("this machine has no address but loopback")


def listener(address: str) -> socket.socket:
    return socket.create_server((address, 0))


def test_a_server_on_loopback_only_is_told_from_one_that_listens_everywhere_and_from_none() -> None:
    own = own_address()
    with listener("127.0.0.1") as local, listener("0.0.0.0") as everywhere:
        assert asyncio.run(on_loopback_only(local.getsockname()[1], own))
        assert not asyncio.run(on_loopback_only(everywhere.getsockname()[1], own))
        gone = local.getsockname()[1]
    assert not asyncio.run(on_loopback_only(gone, own))


def test_it_is_said_once_with_what_to_do_and_only_where_a_balancer_does_not_call_loopback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = own_address()

    async def resolve(name: str) -> frozenset[str]:
        return frozenset({{"balancer.test": "192.0.2.7", "this-host": own}.get(name, "127.0.0.1")})

    monkeypatch.setattr(reach_module, "resolve", resolve)
    caplog.set_level(logging.INFO)

    async def run(balancer: str, address: str, *, advertised: bool = False) -> None:
        with listener(address) as server:
            endpoint = Endpoint("http", "127.0.0.1", server.getsockname()[1])
            collector = ReachCollector(Host(endpoint, (balancer,), advertised), "linux")
            for _ in range(2):
                assert await collector.collect() == {}

    asyncio.run(run("localhost", "127.0.0.1"))
    asyncio.run(run("balancer.test", "0.0.0.0"))
    asyncio.run(run("balancer.test", "127.0.0.1", advertised=True))
    assert caplog.records == []
    # From this host as well, where the balancer is named by an address of it that is not loopback.
    for name in ("balancer.test", "this-host"):
        asyncio.run(run(name, "127.0.0.1"))
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert name in record.getMessage()
        assert 'Environment="OLLAMA_HOST=0.0.0.0"' in record.getMessage()
        caplog.clear()
