"""Load, disk and network of the host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from agent_reporter.addresses import Endpoint
from agent_reporter.collectors import Host
from agent_reporter.collectors.disk import SERVICE_FOLDER, DiskCollector, folders, models_folder, room
from agent_reporter.collectors.load import LoadCollector
from agent_reporter.collectors.network import (
    InterfaceCounters,
    NetworkCollector,
    external_interfaces,
    growth,
    read_counters,
)
from agent_reporter.collectors.process import ServerProcess
from agent_reporter.wire import AgentMetrics

OLLAMA = Endpoint("http", "127.0.0.1", 11434)
HOST = Host(OLLAMA, server=ServerProcess(list))


def test_load_is_three_averages_and_for_how_many_processors() -> None:
    fields = asyncio.run(LoadCollector(HOST).collect())
    averages = fields["load_average"]
    assert isinstance(averages, list)
    assert averages == pytest.approx(psutil.getloadavg(), abs=1)
    assert fields["cpu_count"] == os.cpu_count()


class TestDisk:
    def test_room_is_what_the_file_system_tells(self, tmp_path: Path) -> None:
        fields = room(tmp_path)
        assert fields["disk_total"] == psutil.disk_usage(str(tmp_path)).total
        assert 0 < int(str(fields["disk_free"])) <= int(str(fields["disk_total"]))

    def test_the_servers_own_setting_comes_before_the_reporters_and_the_defaults(self) -> None:
        assert list(folders({"OLLAMA_MODELS": "/a"}, {"OLLAMA_MODELS": "/b"})) == [Path("/a")]
        assert list(folders({}, {"OLLAMA_MODELS": "/b"})) == [Path("/b")]
        defaults = list(folders({}, {}))
        assert defaults[-1] == Path.home() / ".ollama" / "models"
        assert set(defaults) <= {SERVICE_FOLDER, defaults[-1]}

    def test_the_first_folder_that_is_there_counts(self, tmp_path: Path) -> None:
        there = tmp_path / "there"
        there.mkdir()
        assert models_folder([tmp_path / "missing" / "deep", there]) == there

    def test_of_a_folder_that_is_missing_what_there_is_of_its_path_counts(self, tmp_path: Path) -> None:
        assert models_folder([tmp_path / "missing" / "deep"]) == tmp_path

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may look into every folder")
    def test_a_folder_that_may_not_be_looked_into_counts_as_there(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0)
        assert models_folder([closed / "models", tmp_path]) == closed

    def test_the_collector_looks_where_the_server_keeps_its_models(self, tmp_path: Path) -> None:
        class Server(ServerProcess):
            async def settings(self, ollama: Endpoint) -> Mapping[str, str]:
                return {"OLLAMA_MODELS": str(tmp_path)}

        fields = asyncio.run(DiskCollector(Host(OLLAMA, server=Server())).collect())
        assert fields["disk_total"] == room(tmp_path)["disk_total"]


class TestNetwork:
    def test_rates_are_those_since_the_last_report(self) -> None:
        now = 0.0
        counts = iter(
            [
                {"eth0": InterfaceCounters(1000, 50)},
                {"eth0": InterfaceCounters(6000, 60)},
                {"eth0": InterfaceCounters(6000, 60)},
            ]
        )

        async def run() -> list[object]:
            nonlocal now
            collector = NetworkCollector(HOST, read=lambda: next(counts), clock=lambda: now)
            told: list[object] = [await collector.collect()]
            now = 10.0
            told.append(await collector.collect())
            told.append(await collector.collect())  # at the same moment
            return told

        assert asyncio.run(run()) == [{}, {"network_received": 500.0, "network_sent": 1.0}, {}]

    def test_interfaces_that_come_go_or_begin_anew_make_no_jump(self) -> None:
        first = {
            "eth0": InterfaceCounters(100, 100),
            "gone": InterfaceCounters(5, 5),
            "anew": InterfaceCounters(900, 900),
        }
        second = {
            "eth0": InterfaceCounters(107, 103),
            "new": InterfaceCounters(4000, 4000),
            "anew": InterfaceCounters(3, 3),
        }
        assert growth(first, second) == (7, 3)

    def test_bridges_and_containers_are_left_out_where_there_is_hardware_and_loopback_always(self) -> None:
        names = dict.fromkeys(("lo", "eth0", "docker0", "veth12"))
        assert external_interfaces(names, lambda name: name == "eth0") == ["eth0"]
        assert external_interfaces(names, lambda name: False) == ["eth0", "docker0", "veth12"]
        assert external_interfaces({"Loopback Pseudo-Interface 1": None, "Ethernet": None}, lambda name: False) == [
            "Ethernet"
        ]

    def test_this_hosts_counters_are_read(self) -> None:
        for name, counted in read_counters().items():
            assert name != "lo"
            assert counted.received >= 0 <= counted.sent


def test_a_report_may_hold_all_of_it_and_nonsense_is_refused() -> None:
    base = {"cpu_usage": 1, "memory_usage": 2, "active_requests": 0, "timestamp": "2026-01-31T12:00:00Z"}
    good = {"load_average": [0.1, 2, 3], "cpu_count": 8, "disk_free": 5, "disk_total": 10, "network_sent": 1.5}
    assert AgentMetrics.model_validate(base | good).load_average == [0.1, 2, 3]
    for name, value in (
        ("load_average", [1, 2]),
        ("load_average", [1, 2, float("nan")]),
        ("disk_free", -1),
        ("network_received", float("inf")),
        ("collectors", [{"name": "cpu", "ok": "yes", "seconds": 0}]),
        ("collectors", [{"name": "cpu", "ok": True, "seconds": 0}] * 65),
    ):
        with pytest.raises(ValueError, match=name):
            AgentMetrics.model_validate(base | {name: value})
