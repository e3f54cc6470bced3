from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from agent_reporter.addresses import Endpoint
from agent_reporter.collect import Collection
from agent_reporter.collectors import Fields, Host, PartialError
from agent_reporter.wire import AgentMetrics

HOST = Host(ollama=Endpoint("http", "127.0.0.1", 11434))


class Gives:
    """A collector that gives fields, or fails."""

    def __init__(self, answer: Mapping[str, object] | Exception) -> None:
        self.answer = answer

    def __call__(self, host: Host) -> Gives:
        return self

    async def collect(self) -> Fields:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Hangs:
    def __init__(self, host: Host) -> None:
        pass

    async def collect(self) -> Fields:
        await asyncio.Event().wait()
        return {}


def cannot_be_made(host: Host) -> Gives:
    raise OSError("no such device")


GOOD = {"cpu": Gives({"cpu_usage": 12.5}), "memory": Gives({"memory_usage": 25.0})}


def test_a_report_holds_what_all_collectors_gave() -> None:
    report = asyncio.run(Collection(HOST, {**GOOD, "c": Gives({"active_requests": 3, "ollama_ok": True})})())
    assert (report.cpu_usage, report.memory_usage, report.active_requests) == (12.5, 25.0, 3)
    assert report.ollama_ok is True
    assert report.timestamp.utcoffset() is not None


@pytest.mark.parametrize(
    "broken",
    [
        Gives(RuntimeError("driver gone")),
        Gives({"active_requests": -1}),
        Gives({"gpus": "many"}),
        Hangs,
        cannot_be_made,
    ],
)
def test_a_collector_that_fails_stops_no_other(broken: type[Hangs], caplog: pytest.LogCaptureFixture) -> None:
    collection = Collection(HOST, {"broken": broken, **GOOD}, timeout=0.1)

    async def twice() -> AgentMetrics:
        await collection()
        return await collection()

    report = asyncio.run(twice())
    assert (report.cpu_usage, report.memory_usage, report.active_requests) == (12.5, 25.0, 0)
    assert len(caplog.records) == 1
    assert "collector broken failed" in caplog.text


def test_a_collector_that_recovers_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "agent_reporter")
    flaky = Gives(RuntimeError("busy"))
    collection = Collection(HOST, {"flaky": flaky})

    async def run() -> AgentMetrics:
        await collection()
        flaky.answer = {"cpu_usage": 1.0}
        await collection()
        return await collection()

    assert asyncio.run(run()).cpu_usage == 1.0
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "collector flaky failed",
        "collector flaky works again",
    ]


@pytest.mark.e2e
def test_this_hosts_collectors_make_a_whole_report() -> None:
    report = asyncio.run(Collection(Host(ollama=Endpoint("http", "127.0.0.1", 1)))())
    assert report.ollama_ok is False


def test_a_report_says_of_each_collector_how_long_it_took_and_whether_it_worked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ticks = iter([0.0, 0.25, 1.0, 1.5, 2.0, 2.0])
    partly = Gives(PartialError({"gpus": [{"name": "Radeon"}]}))
    collectors = {"cpu": GOOD["cpu"], "gpus": partly, "broken": Gives(OSError("gone"))}
    report = asyncio.run(Collection(HOST, collectors, clock=lambda: next(ticks))())
    assert [(c.name, c.ok, c.seconds) for c in report.collectors or ()] == [
        ("cpu", True, 0.25),
        ("gpus", False, 0.5),
        ("broken", False, 0.0),
    ]
    assert [gpu.name for gpu in report.gpus or ()] == ["Radeon"]
    assert [record.getMessage() for record in caplog.records] == [
        "collector broken failed (OSError: gone); reports go on without it"
    ]
