"""Hundreds of hosts that take connections and never answer, beside living ones."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent_reporter import http
from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Agent, Source, Status
from ollama_balancer.core.liveness import PROBE_GRACE
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.hosts import prober as probing
from ollama_balancer.hosts.prober import Prober
from tests import jumping_loop
from tests.core.fakes import new_registry

BODY = json.dumps({"version": "0.33.0", "models": []}).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Machine(asyncio.Protocol):
    """One server for all hosts, by the first part of the path. It counts connections, and what is asked."""

    open_now: set[asyncio.BaseTransport]
    most: int
    asked: Counter[str]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        Machine.open_now.add(transport)
        Machine.most = max(Machine.most, len(Machine.open_now))

    def connection_lost(self, exc: Exception | None) -> None:
        Machine.open_now.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        path = data.split(b" ", 2)[1].decode()
        Machine.asked[path] += 1
        if b"/silent" not in data:
            assert isinstance(self.transport, asyncio.WriteTransport)
            if b"/slow-lists" in data and b"version" not in data:
                return
            self.transport.write(ANSWER)


@asynccontextmanager
async def machine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """All that is asked of a host `silent-1.test` is asked of one server, at `/silent-1.test/`."""
    Machine.open_now, Machine.most, Machine.asked = set(), 0, Counter()
    server = await asyncio.get_running_loop().create_server(Machine, "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    call = http.call

    async def route(method: str, url: str, **more: object) -> object:
        _, _, host, path = url.split("/", 3)
        return await call(method, f"http://127.0.0.1:{port}/{host.partition(':')[0]}/{path}", **more)  # type: ignore[arg-type]

    monkeypatch.setattr(probing, "call", route)
    try:
        yield port
    finally:
        for transport in list(Machine.open_now):
            assert isinstance(transport, asyncio.Transport)
            transport.abort()
        server.close()


def fleet(registry: AgentRegistry, live: int, silent: int, kind: str = "silent") -> tuple[list[Agent], list[Agent]]:
    """The silent ones first."""
    registered = [
        [registry.register(f"{name}-{n}", Address(f"{name}-{n}.test", 11434), Source.STATIC)[0] for n in range(count)]
        for name, count in ((kind, silent), ("live", live))
    ]
    return registered[1], registered[0]


def asked(agents: list[Agent]) -> list[int]:
    """How often each was asked whether it is there."""
    return [Machine.asked[f"/{agent.name}.test/api/version"] for agent in agents]


@pytest.mark.e2e
@pytest.mark.parametrize("silent", [900, 1500])
def test_silent_hosts_take_no_living_one_offline(monkeypatch: pytest.MonkeyPatch, silent: int) -> None:
    async def test() -> None:
        registry = new_registry(asyncio.get_running_loop().time, must_reach=True)
        prober = Prober(registry, wants_local=lambda: False, via="1.1 test", at_once=64)
        async with machine(monkeypatch):
            live, dead = fleet(registry, 100, silent)
            running = asyncio.create_task(prober.run())
            try:
                async with asyncio.timeout(3000):
                    while not all(agent.online for agent in live) or not prober.first_round.is_set():  # noqa: ASYNC110
                        await asyncio.sleep(0.5)
                    before, others = asked(live), sum(asked(dead))
                    while min(now - then for now, then in zip(asked(live), before, strict=True)) < 4:
                        await asyncio.sleep(0.5)
                        registry.expire()
                        assert all(agent.online for agent in live)
                    assert sum(asked(dead)) - others < silent, "the living wait for no round of the silent"
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            assert not any(agent.online for agent in dead)
            assert Machine.most <= 64 + 64 + 2 * 16
            misses = [prober._schedules[agent].misses for agent in dead]
            assert max(misses) >= 1

    jumping_loop.run(test())


def test_a_host_that_is_slow_to_list_what_it_has_stays_online_and_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        now = 1000.0
        registry = new_registry(lambda: now, must_reach=True)
        prober = Prober(registry, wants_local=lambda: False, via="1.1 test")
        async with machine(monkeypatch):
            _, [slow] = fleet(registry, 0, 1, "slow-lists")
            await prober.probe(slow)
            assert slow.status is Status.ONLINE
            now += PROBE_GRACE - 1
            asking = asyncio.create_task(prober.probe(slow))
            async with asyncio.timeout(30):
                while Machine.asked["/slow-lists-0.test/api/tags"] < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            now += 2
            registry.expire()
            assert slow.status is Status.ONLINE
            await asking

    jumping_loop.run(test())


@pytest.mark.e2e
def test_thousands_of_first_looks_take_few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        registry = new_registry(asyncio.get_running_loop().time, must_reach=True)
        prober = Prober(registry, wants_local=lambda: False, via="1.1 test", at_once=64)
        prober._has_begun = True
        async with machine(monkeypatch):
            [live], silent = fleet(registry, 1, 4000)
            looks = [asyncio.create_task(prober.probe_now(agent)) for agent in silent]
            async with asyncio.timeout(30):
                while len(Machine.asked) < 100:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert await prober.probe(live)
            assert Machine.most <= 16 + 1 + 16  # those that are being closed count, too
            for look in looks:
                look.cancel()
            await asyncio.gather(*looks, return_exceptions=True)

    jumping_loop.run(test())


def test_who_stays_silent_is_asked_less_often_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        now = 1000.0
        registry = new_registry(lambda: now, must_reach=True)
        prober = Prober(registry, wants_local=lambda: False, via="1.1 test")
        agent, _ = registry.register("a", Address("127.0.0.1", 1), Source.STATIC)
        answers = False

        async def probe(agent: Agent) -> bool:
            return answers

        monkeypatch.setattr(prober, "probe", probe)
        waits = []
        for _ in range(8):
            turn = prober._claim(agent)
            await prober._probe_on_schedule(agent, turn, prober._silent_lane)
            waits.append(turn.at - now)
            now = turn.at
        assert waits == [5, 5, 5, 5, 10, 10, 10, 10]
        answers = True
        turn = prober._claim(agent)
        await prober._probe_on_schedule(agent, turn, prober._silent_lane)
        assert turn.at - now == 5

    asyncio.run(test())
