"""What is said of a host that is not reached says what to do."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent_reporter.http import CallTimeoutError, ConnectError
from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Agent, Source, Status
from ollama_balancer.gateway.reachability import LONGEST_REASON, plain_reason, reachability_headers
from ollama_balancer.hosts import prober as probing
from ollama_balancer.hosts.prober import Prober, explain
from tests import jumping_loop
from tests.core.fakes import address, new_registry, report
from tests.e2e.harness import free_port

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def server(answer: bytes | None) -> AsyncIterator[Address]:
    """Answers each request with that; None: not at all."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await ended.wait()
        else:
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield Address("127.0.0.1", listening.sockets[0].getsockname()[1])
        ended.set()


def http(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "accepts connections but does not answer GET /api/version"),
        (http("508 Loop Detected", "{}"), "is the balancer itself or leads back to it; give the host and port"),
        (
            http("404 Not Found", "<html>"),
            "is not Ollama, or is in trouble: GET /api/version returned status 404; give the",
        ),
        (http("200 OK", "<html>nginx</html>"), "as Ollama does; give the host and port that Ollama listens on"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "give the host and port that Ollama listens on"),
    ],
    ids=["hangs", "the balancer", "another server", "a page", "no HTTP"],
)
@pytest.mark.parametrize("reports", [True, False])
def test_who_gives_no_answer_from_the_start_is_named_with_the_first_probe(
    caplog: pytest.LogCaptureFixture, answer: bytes | None, reason: str, reports: bool
) -> None:
    async def test() -> Agent:
        registry = new_registry(lambda: 1000.0, must_reach=True)
        async with server(answer) as where:
            agent, _ = registry.register("a", where, Source.REGISTERED)
            if reports:
                registry.update_metrics("a", report())
            await Prober(registry, wants_local=lambda: False, via="1.1 test").probe(agent)
            return agent

    agent = jumping_loop.run(test())
    assert agent.status is (Status.UNREACHABLE if reports else Status.OFFLINE)
    assert reason in (agent.reason or "")
    assert "\n" not in (agent.reason or "")
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"Agent a ({agent.address}) is {'unreachable' if reports else 'not reachable'}: ")
    assert reason in line


def test_who_does_not_let_the_balancer_in_is_shown_and_told_as_such() -> None:
    async def test() -> tuple[Agent, dict[str, str]]:
        registry = new_registry(lambda: 1000.0, must_reach=True)
        async with server(http("401 Unauthorized", "<html>")) as where:
            agent, _ = registry.register("a", where, Source.REGISTERED)
            registry.update_metrics("a", report())
            await Prober(registry, wants_local=lambda: False, via="1.1 test").probe(agent)
            assert registry.selection.select() is None
            return agent, reachability_headers(agent)

    agent, told = asyncio.run(test())
    assert agent.status is Status.UNAUTHORIZED
    assert "refuses the balancer (status 401)" in (agent.reason or "")
    assert told == {"X-Balancer-Reachable": f"no; {agent.reason}"}


def test_a_refused_connection_says_where_ollama_has_to_listen() -> None:
    async def test(host: str) -> str:
        registry = new_registry(lambda: 1000.0, must_reach=True)
        agent, _ = registry.register("a", Address(host, free_port()))
        assert await Prober(registry, wants_local=lambda: False, via="1.1 test").probe(agent)
        return agent.reason or ""

    here = asyncio.run(test("127.0.0.1"))
    assert here.startswith("cannot connect: connection refused at 127.0.0.1:")
    assert "check that Ollama runs there" in here
    there = explain(address(5), ConnectError("connection refused"))
    assert "10.0.0.5:11434" in there
    assert "OLLAMA_HOST=0.0.0.0" in there


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        (f"[Errno {errno.ECONNREFUSED}] Connect call failed ('10.0.0.5', 11434)", "connection refused"),
        (f"[Errno {errno.EHOSTUNREACH}] Connect call failed ('10.0.0.5', 1)", os.strerror(errno.EHOSTUNREACH)),
        ("[Errno -2] Name or service not known", "Name or service not known"),
        ("timeout", "timeout"),
    ],
)
def test_a_failed_connection_is_told_in_plain_words(raw: str, plain: str) -> None:
    assert plain_reason(raw) == plain


def test_a_connection_that_is_dropped_names_the_firewall_and_the_port() -> None:
    why = explain(address(5), CallTimeoutError("no connection within 2 s", connected=False))
    assert why.startswith(
        "cannot connect: no connection within 2 s at 10.0.0.5:11434; check the address, and that no firewall blocks "
        "TCP port 11434"
    )
    assert "firewall" in why


def test_a_name_that_is_not_known_asks_for_an_address() -> None:
    for why in ("host not found", "Name or service not known"):
        assert "--advertise http://IP:PORT" in explain(Address("gpu.lan", 11434), ConnectError(why))


def test_a_reporter_is_told_while_its_host_is_unreachable_and_in_a_header_that_is_plain_and_short() -> None:
    registry = new_registry(lambda: 1000.0, must_reach=True)
    agent, _ = registry.register("a", address(1))
    registry.update_metrics("a", report())
    assert reachability_headers(agent) == {}  # nothing is known yet
    registry.liveness.silent(agent, "a\r\nX-Evil: 1 é " + "x" * 10_000)
    [(name, value)] = reachability_headers(agent).items()
    assert name == "X-Balancer-Reachable"
    assert value.startswith("no; a??X-Evil: 1 ? xxx")
    assert len(value) <= LONGEST_REASON + 4
    registry.liveness.reached(agent)
    assert reachability_headers(agent) == {}


def test_many_dead_hosts_do_not_keep_a_live_one_waiting_for_its_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than are asked at once, each of which takes the whole of its time."""
    monkeypatch.setattr(probing, "AT_ONCE", 2)

    async def test() -> None:
        registry = new_registry(asyncio.get_running_loop().time, must_reach=True)
        prober = Prober(registry, wants_local=lambda: False, via="1.1 test")
        body = json.dumps({"version": "0.33.0", "models": []})
        async with server(http("200 OK", body)) as live, server(None) as dead:
            agent, _ = registry.register("live", live)
            assert await prober.probe(agent)
            for number in range(20):
                registry.register(f"dead-{number}", dead)
            asked = 0

            def seen(agent: Agent, version: str) -> None:
                nonlocal asked
                asked += agent.name == "live"

            monkeypatch.setattr(registry.inventory, "update_version", seen)
            running = asyncio.create_task(prober.run())
            try:
                async with asyncio.timeout(300):
                    while asked < 3:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                assert not prober.first_round.is_set()  # the dead ones still have it wait
            finally:
                running.cancel()

    jumping_loop.run(test())
