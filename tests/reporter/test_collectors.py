from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psutil
import pytest

from agent_reporter.addresses import Endpoint, parse_ollama_host
from agent_reporter.collectors import Host
from agent_reporter.collectors.connections import (
    Connection,
    ConnectionsCollector,
    count_active,
    read_connections,
)
from agent_reporter.collectors.cpu import CpuCollector, busy_percent
from agent_reporter.collectors.memory import MemoryCollector, used_percent
from agent_reporter.collectors.ollama import OllamaCollector, parse_models, parse_version
from agent_reporter.limits import MAX_MODELS
from agent_reporter.wire import AgentMetrics

from .stubs import StubOllama, free_port, wait_until

HOST = Host(ollama=Endpoint("http", "127.0.0.1", 11434))


class LinuxTimes(NamedTuple):
    user: float
    idle: float
    iowait: float = 0.0
    guest: float = 0.0


class TestCpu:
    def test_usage_is_the_share_of_time_neither_idle_nor_waiting(self) -> None:
        assert busy_percent(LinuxTimes(10, 10, 10), LinuxTimes(11, 12, 11)) == 25

    def test_guest_time_is_not_counted_twice(self) -> None:
        assert busy_percent(LinuxTimes(0, 0), LinuxTimes(user=1, idle=1, guest=1)) == 50

    def test_a_counter_that_steps_back_counts_as_still(self) -> None:
        assert busy_percent(LinuxTimes(5, 5, 5), LinuxTimes(6, 6, 4)) == 50

    def test_counters_that_stand_still_tell_nothing(self) -> None:
        with pytest.raises(ValueError, match="do not change"):
            busy_percent(LinuxTimes(1, 1), LinuxTimes(1, 1))

    def test_the_first_measurement_waits_and_the_next_spans_the_interval_between_reports(self) -> None:
        now = 0.0
        waits = []
        times = iter([LinuxTimes(0, 0), LinuxTimes(1, 1), LinuxTimes(4, 2)])

        async def sleep(seconds: float) -> None:
            nonlocal now
            waits.append(seconds)
            now += seconds

        async def run() -> list[object]:
            nonlocal now
            collector = CpuCollector(HOST, read=lambda: next(times), clock=lambda: now, sleep=sleep)
            first = await collector.collect()
            now += 10
            return [first, await collector.collect()]

        assert asyncio.run(run()) == [{"cpu_usage": 50.0}, {"cpu_usage": 75.0}]
        assert waits == [0.5]


class TestMemory:
    def test_usage_is_what_is_not_available(self) -> None:
        assert used_percent(total=200, available=50) == 75

    def test_a_total_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no memory"):
            used_percent(0, 0)

    def test_this_host_gives_a_figure_in_range(self) -> None:
        usage = asyncio.run(MemoryCollector(HOST).collect())["memory_usage"]
        assert isinstance(usage, float)
        assert 0 < usage < 100


def link(client: str, port: int = 50000, *, server: str = "10.0.0.7", status: str = "ESTABLISHED") -> Connection:
    return Connection((server, 11434), (client, port), status)


class TestCountingConnections:
    def count(self, records: Sequence[Connection], balancers: Sequence[str] = (), here: bool = False) -> int:
        return count_active(records, 11434, frozenset(balancers), here)

    def test_established_connections_to_the_port_count(self) -> None:
        assert self.count([link("10.0.0.8"), link("10.0.0.8", 50001), link("10.0.0.9")]) == 3

    def test_listeners_and_connections_that_end_do_not_count(self) -> None:
        listener = Connection(("0.0.0.0", 11434), (), "LISTEN")
        assert self.count([listener, link("10.0.0.8", status="TIME_WAIT"), link("10.0.0.8", status="CLOSE_WAIT")]) == 0

    def test_connections_of_other_ports_and_calls_to_other_ollamas_do_not_count(self) -> None:
        other = Connection(("10.0.0.7", 22), ("10.0.0.8", 50000), "ESTABLISHED")
        outgoing = Connection(("10.0.0.7", 50000), ("10.0.0.9", 11434), "ESTABLISHED")
        assert self.count([other, outgoing]) == 0

    def test_a_balancers_connections_do_not_count_in_either_spelling_of_its_address(self) -> None:
        records = [link("10.0.0.2"), link("::ffff:10.0.0.2", server="::ffff:10.0.0.7"), link("10.0.0.8")]
        assert self.count(records, ["10.0.0.2"]) == 1

    def test_a_loopback_connection_counts_once_though_both_its_ends_are_listed(self) -> None:
        server = Connection(("127.0.0.1", 11434), ("127.0.0.1", 50000), "ESTABLISHED")
        client = Connection(("127.0.0.1", 50000), ("127.0.0.1", 11434), "ESTABLISHED")
        assert self.count([client, server, server]) == 1

    def test_with_a_balancer_here_the_hosts_connections_to_itself_do_not_count(self) -> None:
        records = [link("127.0.0.1", server="127.0.0.1"), link("::1", server="::1"), link("10.0.0.7"), link("10.0.0.8")]
        assert self.count(records, ["127.0.0.1"], here=True) == 1


@contextmanager
def listening() -> Iterator[int]:
    """A server that accepts and says nothing."""
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            try:
                while True:
                    accepted.append(server.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in accepted:
                connection.close()


def active(port: int, *balancers: str) -> object:
    collector = ConnectionsCollector(Host(parse_ollama_host(f":{port}"), balancers))
    return asyncio.run(collector.collect())["active_requests"]


class TestConnections:
    @pytest.mark.e2e  # reads all connections of the machine, which may be many
    def test_a_real_connection_to_the_ollama_port_is_counted_while_it_is_open(self) -> None:
        with listening() as port:
            assert active(port, "192.0.2.1") == 0
            with socket.create_connection(("127.0.0.1", port)):
                wait_until(lambda: active(port, "192.0.2.1") == 1, "the connection is counted")
                assert active(port, "127.0.0.1") == 0
            wait_until(lambda: active(port, "192.0.2.1") == 0, "the connection is gone")

    @pytest.mark.e2e  # reads all connections of the machine, which may be many
    def test_a_balancer_whose_name_is_not_found_takes_nothing_away(self) -> None:
        with listening() as port, socket.create_connection(("127.0.0.1", port)):
            wait_until(lambda: active(port, "nowhere.invalid") == 1, "the connection is counted")

    def test_without_the_right_to_all_connections_the_ollama_processes_own_are_read(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(psutil, "net_connections", denied)
        monkeypatch.setattr(psutil, "process_iter", processes(FakeProcess("Ollama"), FakeProcess("python")))
        assert read_connections() == [link("10.0.0.8")]

    def test_without_the_right_to_either_the_collector_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(psutil, "net_connections", denied)
        monkeypatch.setattr(psutil, "process_iter", processes(FakeProcess("ollama", denied)))
        with pytest.raises(psutil.AccessDenied):
            active(11434)

    def test_a_process_that_ends_meanwhile_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(psutil, "net_connections", denied)
        monkeypatch.setattr(psutil, "process_iter", processes(FakeProcess("ollama", gone), FakeProcess("ollama.exe")))
        assert len(read_connections()) == 1


class Record(NamedTuple):
    laddr: tuple[str, int]
    raddr: tuple[str, int]
    status: str


class FakeProcess:
    def __init__(
        self, name: str, answer: Any = lambda **_: [Record(("10.0.0.7", 11434), ("10.0.0.8", 50000), "ESTABLISHED")]
    ):
        self.info = {"name": name}
        self.net_connections = answer


def processes(*fakes: FakeProcess) -> Any:
    return lambda _attributes: iter(fakes)


def denied(**_: Any) -> Any:
    raise psutil.AccessDenied


def gone(**_: Any) -> Any:
    raise psutil.NoSuchProcess(1)


class TestReadingOllamasAnswers:
    def test_models_keep_all_that_ollama_says_of_them(self) -> None:
        models = parse_models({"models": [{"name": "a", "size": 1, "details": {"family": "llama"}}]})
        assert [model.model_dump() for model in models] == [{"name": "a", "size": 1, "details": {"family": "llama"}}]

    def test_entries_without_a_name_are_left_out(self) -> None:
        assert [m.name for m in parse_models({"models": [{}, "x", {"name": 1}, {"name": ""}, {"name": "a"}]})] == ["a"]

    def test_no_models_may_be_an_empty_list_or_null(self) -> None:
        assert parse_models({"models": []}) == parse_models({"models": None}) == []

    def test_more_models_than_a_report_may_hold_are_cut(self) -> None:
        assert len(parse_models({"models": [{"name": "a"}] * 20_000})) == MAX_MODELS

    @pytest.mark.parametrize("answer", [None, [], "x", {"models": {}}, {"models": "x"}])
    def test_an_answer_without_a_list_is_refused(self, answer: object) -> None:
        with pytest.raises(ValueError, match="no list"):
            parse_models(answer)

    @pytest.mark.parametrize("answer", [None, [], {}, {"version": 1}, {"version": "x" * 300}])
    def test_a_version_that_is_no_short_text_is_refused(self, answer: object) -> None:
        with pytest.raises(ValueError, match="no version"):
            parse_version(answer)


def ask(port: int) -> dict[str, Any]:
    return dict(asyncio.run(OllamaCollector(Host(parse_ollama_host(f":{port}"))).collect()))


class TestOllama:
    def test_a_live_one_tells_its_version_its_models_and_the_loaded_ones(self) -> None:
        with StubOllama() as ollama:
            fields = ask(ollama.port)
        assert fields["ollama_ok"] is True
        assert fields["ollama_version"] == "0.33.0"
        assert [model.name for model in fields["models"]] == ["tiny:latest"]
        assert [model.name for model in fields["loaded_models"]] == ["tiny:latest"]

    def test_a_dead_one_is_reported_as_such(self) -> None:
        assert ask(free_port()) == {"ollama_ok": False}

    @pytest.mark.parametrize(
        "answer",
        [
            (500, {"error": "no"}),
            (200, b"not JSON"),
            (200, b'{"models": [{"name": "a", "size": NaN}]}'),
            (200, b'{"models": ' + b"[" * 100_000),
            (200, b'{"models": [{"name": "a", "x": "\\ud800"}]}'),
            (200, b" " * 5_000_000),
        ],
    )
    def test_what_it_does_not_tell_properly_is_left_out(self, answer: tuple[int, object]) -> None:
        with StubOllama() as ollama:
            ollama.answers["/api/tags"] = answer
            fields = ask(ollama.port)
        assert fields["ollama_ok"] is True
        assert fields["models"] is None
        assert [model.name for model in fields["loaded_models"]] == ["tiny:latest"]

    def test_a_number_beyond_all_range_does_not_break_the_report(self) -> None:
        with StubOllama() as ollama:
            ollama.answers["/api/tags"] = (200, b'{"models": [{"name": "a", "size": 1e999}]}')
            fields = ask(ollama.port)
        report = AgentMetrics.model_validate(
            {"cpu_usage": 0.0, "memory_usage": 0.0, "active_requests": 0, "timestamp": "2026-01-31T12:00:00Z", **fields}
        )
        AgentMetrics.model_validate_json(report.model_dump_json())

    def test_it_says_once_that_ollama_is_silent_and_once_that_it_is_back(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "agent_reporter")
        ollama = StubOllama(free_port())
        collector = OllamaCollector(Host(parse_ollama_host(f":{ollama.port}")))

        async def ask_twice() -> None:
            await collector.collect()
            await collector.collect()

        asyncio.run(ask_twice())
        with ollama:
            asyncio.run(ask_twice())
        assert [record.message.partition(f"{ollama.port} ")[2][:15] for record in caplog.records] == [
            "does not answer",
            "answers again",
        ]
