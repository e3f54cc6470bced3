"""What a probe tells of an agent whose server does not answer it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent_reporter.http import Answer, call
from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Source, Status
from ollama_balancer.core.liveness import PROBE_GRACE
from ollama_balancer.hosts import prober as probing
from ollama_balancer.hosts.prober import ACTIVITY_SECONDS, Prober, host_time
from ollama_balancer.simulator import SimulatedModel, SimulatedOllama, Timing
from tests.core.fakes import entries, new_registry


@asynccontextmanager
async def silent_server() -> AsyncIterator[Address]:
    """Takes connections and says nothing."""
    open_now = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await open_now.wait()
        writer.close()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        open_now.set()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        (b"Mon, 23 Nov 2026 18:58:17 GMT", 1795460297.0),
        (b"", None),
        (b"soon", None),
        (b"Mon, 23 Nov 99999 18:58:17 GMT", None),
        (b"\xff" * 99, None),
    ],
)
def test_the_clock_of_a_host_is_read_from_its_answers(date: bytes, seconds: float | None) -> None:
    assert host_time(Answer(200, b"", ((b"date", date),))) == seconds
    assert host_time(Answer(200, b"")) is None


@pytest.mark.parametrize(("keep_alive", "evicted"), [(2, False), (300, True)])
def test_a_model_due_to_be_unloaded_when_another_is_loaded_was_not_evicted(keep_alive: int, evicted: bool) -> None:
    async def test() -> None:
        registry = new_registry(time.monotonic)
        prober = Prober(registry, wants_local=lambda: False, via="1.1 test")
        models, timing = [SimulatedModel("a"), SimulatedModel("b")], Timing(load=0, max_loaded=1)
        host = SimulatedOllama(models, timing, clock=lambda: 1000.0)
        await host.start()
        try:
            agent, _ = registry.register("a", Address("127.0.0.1", host.port), Source.STATIC)
            await prober.refresh_loaded(agent)
            for model in ("a", "b"):
                body = json.dumps({"model": model, "keep_alive": keep_alive}).encode()
                await call("POST", f"{agent.address.url}/api/generate", timeout=9, limit=9999, content=body)
                await prober.refresh_loaded(agent)
                assert list(agent.listed) == [f"{model}:latest"]
            assert (agent.memory.refused > 0) is evicted
        finally:
            await host.stop()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("was_online", "ago", "status"),
    [
        (True, 0.5, Status.ONLINE),
        (True, ACTIVITY_SECONDS + 1, Status.OFFLINE),
        (False, 0.5, Status.OFFLINE),  # an old stream says nothing about whether it can be reached again
    ],
)
def test_who_answers_late_but_is_heard_stays_online(
    monkeypatch: pytest.MonkeyPatch, was_online: bool, ago: float, status: Status
) -> None:
    monkeypatch.setattr(probing, "ALIVE_TIMEOUT", 0.05)

    async def test() -> None:
        now = 1000.0
        registry = new_registry(lambda: now)
        prober = Prober(registry, wants_local=lambda: False, via="1.1 test")
        async with silent_server() as address:
            agent, _ = registry.register("a", address, Source.STATIC)
            if was_online:
                registry.liveness.reached(agent)
            now += PROBE_GRACE - 1
            agent.heard(now - ago)
            assert await prober.probe(agent) is (status is Status.ONLINE)
            now += 2
            registry.expire()
            assert agent.status is status

    asyncio.run(test())


def test_who_does_not_let_a_probe_in_is_unauthorized_until_it_does() -> None:
    status = b"200 OK"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"version":"0.33.0","models":[]}' if status.startswith(b"200") else b"<html>"
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body))
        await writer.drain()
        writer.close()

    async def test() -> None:
        nonlocal status
        now = 1000.0
        registry = new_registry(lambda: now)
        prober = Prober(registry, wants_local=lambda: False, via="1.1 test")
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            agent, _ = registry.register("a", Address(*server.sockets[0].getsockname()[:2]), Source.STATIC)
            for status, shown in (
                (b"401 Unauthorized", Status.UNAUTHORIZED),
                (b"200 OK", Status.ONLINE),
                (b"403 Forbidden", Status.UNAUTHORIZED),
                (b"200 OK", Status.ONLINE),
            ):
                for _ in range(8):  # 40 seconds of rounds
                    await prober.probe(agent)
                    now += 5.0
                    registry.expire()
                assert agent.status is shown
                assert agent.available is (shown is Status.ONLINE)
                if shown is Status.UNAUTHORIZED:
                    assert agent.reason is not None
                    assert status.decode()[:3] in agent.reason

    asyncio.run(test())


@pytest.mark.parametrize("moves", [False, True])
def test_what_another_machine_has_loaded_says_nothing_of_an_agent_that_has_moved(moves: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b'{"model": "m"}')
        if moves:
            registry.register("a", Address("10.0.0.9", 11434))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    registry = new_registry()

    async def test() -> None:
        prober = Prober(registry, wants_local=lambda: False, via="1.1 test")
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            agent, _ = registry.register("a", Address(*server.sockets[0].getsockname()[:2]), Source.STATIC)
            registry.inventory.update_models(agent, entries("m"))
            assert await prober.load(agent, "m:latest") is not moves

    asyncio.run(test())


def test_a_model_is_unloaded_when_the_host_says_so() -> None:
    registry = new_registry()

    async def test() -> None:
        prober = Prober(registry, wants_local=lambda: False, via="1.1 test")
        host = SimulatedOllama(
            [SimulatedModel("m"), SimulatedModel("other")], timing=Timing(time_scale=0, max_loaded=2)
        )
        await host.start()
        try:
            agent, _ = registry.register("a", Address("127.0.0.1", host.port), Source.STATIC)
            await prober.refresh(agent)
            for name in ("m:latest", "other:latest"):
                assert await prober.load(agent, name)
            await prober.refresh(agent)
            assert await prober.unload(agent, "m:latest")
            assert host.loaded == ["other:latest"]
            assert list(agent.loaded_models) == ["other:latest"]
            assert not await prober.unload(agent, "unknown:latest")
        finally:
            await host.stop()
        assert not await prober.unload(agent, "other:latest")
        assert list(agent.loaded_models) == ["other:latest"]

    asyncio.run(test())
