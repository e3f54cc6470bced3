"""What is known of the Ollama server's process, and whether it can be reached from elsewhere."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent_reporter.addresses import Endpoint
from agent_reporter.collectors import Host
from agent_reporter.collectors import reach as reach_module
from agent_reporter.collectors.process import LOOK_AGAIN, ServerProcess
from agent_reporter.collectors.reach import ReachCollector, facing, on_loopback_only
from agent_reporter.collectors.server import ServerCollector, parse

from .stubs import wait_until

HOST = Host(ollama=Endpoint("http", "127.0.0.1", 11434))


@pytest.mark.parametrize(
    ("environment", "fields"),
    [
        ({}, {}),
        ({"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_MAX_LOADED_MODELS": " 3 "}, {"num_parallel": 4, "max_loaded_models": 3}),
        ({"OLLAMA_NUM_PARALLEL": "0", "OLLAMA_MAX_LOADED_MODELS": "many"}, {}),
        ({"OLLAMA_NUM_PARALLEL": "-1"}, {}),
        ({"OLLAMA_MAX_QUEUE": "512", "OLLAMA_KEEP_ALIVE": "-1"}, {"max_queue": 512, "keep_alive": "-1"}),
        ({"OLLAMA_KEEP_ALIVE": "5m\n"}, {"keep_alive": "5m"}),
        ({"OLLAMA_KEEP_ALIVE": "5\x1bm"}, {}),
        ({"OLLAMA_KEEP_ALIVE": "5" * 41}, {}),
        ({"OLLAMA_NUM_PARALLEL": "9" * 400}, {}),
        ({"OLLAMA_NUM_PARALLEL": "٤", "SECRET": "x"}, {}),
    ],
)
def test_of_the_environment_only_the_servers_settings_are_read(
    environment: dict[str, str], fields: dict[str, object]
) -> None:
    assert parse(environment) == fields


@pytest.fixture
def server(tmp_path: Path) -> Iterator[psutil.Process]:
    """A process that is called ollama and was started as `ollama serve`."""
    program = tmp_path / "ollama"
    shutil.copy(shutil.which("cat") or "/bin/cat", program)
    os.mkfifo(tmp_path / "serve")  # which it waits to read
    script = "import os, sys; os.execv(sys.argv[1], ['ollama', 'serve'])"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(program)],
        cwd=tmp_path,
        env={"OLLAMA_NUM_PARALLEL": "6", "OLLAMA_MAX_LOADED_MODELS": "2", "SECRET": "x"},
    )
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="starts a process by another name")
def test_the_servers_process_is_found_and_asked_once(server: psutil.Process) -> None:
    asked = 0

    def processes() -> Iterator[psutil.Process]:
        nonlocal asked
        asked += 1
        yield from psutil.process_iter()

    async def run() -> list[Any]:
        await asyncio.to_thread(
            wait_until, lambda: server.cmdline() == ["ollama", "serve"], "it has become another program"
        )
        found = ServerProcess(lambda: [p for p in processes() if p.pid == server.pid])
        assert "SECRET" not in await found.settings()
        collector = ServerCollector(Host(HOST.ollama, server=found))
        told = [await collector.collect(), await collector.collect()]
        server.kill()
        server.wait(10)
        return [*told, await collector.collect()]

    settings = {"num_parallel": 6, "max_loaded_models": 2}
    assert asyncio.run(run()) == [settings, settings, {}]
    assert asked == 2


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
    assert asyncio.run(found.settings()) == {}


def test_a_server_whose_environment_is_another_users_is_not_looked_for_again() -> None:
    asked = 0

    class Closed:
        def name(self) -> str:
            return "ollama"

        def cmdline(self) -> list[str]:
            return ["/usr/bin/ollama", "serve"]

        def environ(self) -> dict[str, str]:
            raise psutil.AccessDenied(1)

        def is_running(self) -> bool:
            return True

    def processes() -> Iterator[Any]:
        nonlocal asked
        asked += 1
        yield Closed()

    async def run() -> None:
        found = ServerProcess(processes, clock=lambda: float(asked) * 1e6)
        assert [await found.settings() for _ in range(3)] == [{}, {}, {}]

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
        for at in (0.0, 10.0, LOOK_AGAIN - 1, LOOK_AGAIN, LOOK_AGAIN + 1):
            now = at
            await found.settings()
            looks.append(asked)
        return looks

    assert asyncio.run(run()) == [1, 1, 1, 2, 2]


def own_address() -> str:
    try:
        return facing("192.0.2.1")
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


def test_it_is_said_once_with_what_to_do_and_only_where_a_balancer_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own_address()

    async def resolve(name: str) -> frozenset[str]:
        return frozenset({"192.0.2.7" if name == "balancer.test" else "127.0.0.1"})

    monkeypatch.setattr(reach_module, "resolve", resolve)
    caplog.set_level(logging.INFO)

    async def run(balancer: str, address: str) -> None:
        with listener(address) as server:
            endpoint = Endpoint("http", "127.0.0.1", server.getsockname()[1])
            collector = ReachCollector(Host(endpoint, (balancer,)), "linux")
            for _ in range(2):
                assert await collector.collect() == {}

    asyncio.run(run("localhost", "127.0.0.1"))
    asyncio.run(run("balancer.test", "0.0.0.0"))
    assert caplog.records == []
    asyncio.run(run("balancer.test", "127.0.0.1"))
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "balancer.test" in record.getMessage()
    assert 'Environment="OLLAMA_HOST=0.0.0.0"' in record.getMessage()
