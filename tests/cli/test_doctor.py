"""What `doctor` finds without asking anybody."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ollama_balancer.cli.doctor import agents, folder, machine, ports
from ollama_balancer.cli.doctor.findings import Level, Report, ok, problem, warning
from ollama_balancer.cli.doctor.settings import read
from ollama_balancer.core.address import Address
from ollama_balancer.settings.options import TABLE
from ollama_balancer.storage.agents import FILE_NAME as STATE_FILE


@pytest.mark.parametrize(
    ("python", "mitmproxy", "levels"),
    [
        ((3, 12, 0), "12.2.2", [Level.OK, Level.OK]),
        ((3, 13, 9), "12.3.1", [Level.OK, Level.OK]),
        ((3, 11, 9), "12.2.1", [Level.PROBLEM, Level.PROBLEM]),
        ((3, 14, 0), "12.4.0", [Level.WARNING, Level.WARNING]),
        ((4, 0, 0), "13.0.0.dev", [Level.WARNING, Level.WARNING]),
    ],
)
def test_versions_that_were_not_tested_are_warned_of(
    python: tuple[int, ...], mitmproxy: str, levels: list[Level]
) -> None:
    found = list(machine.versions(python, mitmproxy))
    assert [each.level for each in found] == levels
    assert all(bool(each.remedy) == (each.level is not Level.OK) for each in found)


def test_a_clock_that_was_never_set_is_found() -> None:
    assert [each.level for each in machine.clock(1e9)] == [Level.PROBLEM]
    assert [each.level for each in machine.clock(1.8e9)] == [Level.OK]


@pytest.mark.parametrize(("limit", "queue_size", "level"), [(1024, 1000, Level.PROBLEM), (1024, 400, Level.OK)])
def test_the_open_file_limit_is_measured_by_the_queue(limit: int, queue_size: int, level: Level) -> None:
    assert [each.level for each in machine.open_files(limit, queue_size)] == [level]


@pytest.mark.skipif(os.name != "posix", reason="asks for the flags of a file system")
def test_a_disk_that_takes_nothing_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def found() -> list[str]:
        return [each.what for each in folder.check(tmp_path, token_given=True)]

    assert found() == [f"folder {tmp_path}"]
    with monkeypatch.context() as full:
        usage = shutil.disk_usage(tmp_path)
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 << 20))
        assert found() == [f"the disk of {tmp_path} is full: 3 MiB are free"]
    status = os.statvfs(tmp_path)
    flags = os.statvfs_result((*status[:8], status.f_flag | os.ST_RDONLY, status.f_namemax))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert found() == [f"{tmp_path} cannot be written by this user"]
    monkeypatch.setattr(os, "statvfs", lambda _: flags)
    assert found() == [f"{tmp_path} is on a read-only file system"]


def test_names_are_looked_up_at_the_same_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def look_up(host: str) -> list[str]:
        await both.wait()
        return [f"10.0.0.{len(host)}"]

    both = asyncio.Barrier(2)
    monkeypatch.setattr(agents, "look_up", look_up)
    entries = ["dns+http://a", "dns+http://bb", "dns+ftp://c"]
    assert listed(entries, [], tmp_path)[0] == ["a-10.0.0.1=10.0.0.1:11434", "bb-10.0.0.2=10.0.0.2:11434"]


def test_what_is_found_is_printed_safely_and_counted() -> None:
    output = io.StringIO()
    report = Report(output)
    report.add(ok("fine"), warning("odd\x1b[2J", "wait"), problem("x" * 1000, "change\nit"))
    assert report.close() == 1
    lines = output.getvalue().splitlines()
    assert lines[:3] == ["ok       fine", "warning  odd [2J", "         → wait"]
    assert max(map(len, lines)) < 420
    assert lines[4] == "         → change it"
    assert lines[-1] == "1 problem, 1 warning."
    warned = Report(io.StringIO())
    warned.add(warning("odd", "wait"))
    assert warned.close() == 0


def test_arguments_win_over_set_and_that_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_BALANCER_TOKEN", raising=False)
    (tmp_path / "config.yaml").write_text(
        "listen_port: 9001\nlisten_host: 127.0.0.1\nbalancer_queue_size: 7\nbalancer_agents:\n- a=http://a\n- http://b\n"
    )
    confdir = f"confdir={tmp_path}"
    from_file = read([confdir])
    assert (from_file.port, from_file.host, from_file.queue_size) == (9001, "127.0.0.1", 7)
    assert from_file.agents == ["a=http://a", "http://b"]
    given = read([confdir, "listen_port=9002", "balancer_agents=c=http://c, http://d", "balancer_agents=http://e"])
    assert given.port == 9002
    assert given.agents == ["c=http://c", "http://d", "http://e"]
    assert read([confdir, "listen_port=9002"], "9003", "").port == 9003
    assert read([confdir], None, "").host == ""
    assert from_file.findings == given.findings == []


def test_each_option_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAD_BALANCER_MODE", "fastest")
    (tmp_path / "config.yaml").write_text("balancer_retries: many\nbalancer_relay: false\nbalancer_slot: 3\n")
    settings = read([f"confdir={tmp_path}", "balancer_queue_size=12", "balancer_memory=1z", "balancer_lean=false"])
    assert settings.queue_size == 12
    assert sorted((each.what, each.remedy) for each in settings.findings) == [
        ("balancer_memory: '1z' is not accepted", "it takes a size from 1m to 1t, such as 512m or 4g"),
        ("balancer_mode: 'fastest' is not a mode", f"it takes {TABLE['balancer_mode'].kind.accepts}"),
        ("balancer_retries: 'many' is not accepted", "it takes a whole number from 0 to 100"),
        ("there is no option balancer_slot", "write balancer_slots"),
    ]


def test_the_fleet_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text("agents:\n  gpu-1: {url: http://a:1}\noptions:\n  queue_size: 5\n")
    settings = read([f"confdir={tmp_path}", f"balancer_config={file}"])
    assert settings.findings == []
    assert settings.queue_size == 5
    found, findings = asyncio.run(agents.listed(settings, ports.Running()))
    assert [(each.name, each.address.url, each.source) for each in found] == [("gpu-1", "http://a:1", agents.FLEET)]
    assert findings == []
    file.write_text("agents:\n  gpu-1: {url: a:1}\n  gpu-2: {slot: 2}\n")
    found_problems = [each.what for each in read([f"confdir={tmp_path}", f"balancer_config={file}"]).findings]
    assert [each.split(": ")[0] for each in found_problems] == [f"{file}:2", f"{file}:3", f"{file}:3"]


@pytest.mark.e2e
def test_each_address_of_a_name_is_an_agent(tmp_path: Path) -> None:
    settings = read([f"confdir={tmp_path}", "balancer_agents=dns+http://localhost:7,gpu=dns+http://no-such.invalid:7"])
    found, findings = asyncio.run(agents.listed(settings, ports.Running()))
    assert ("localhost-127.0.0.1", "http://127.0.0.1:7") in [(each.name, each.address.url) for each in found]
    assert {each.address.authority for each in found} == {"localhost:7"}
    assert [each.what for each in findings] == ["balancer_agents: the name no-such.invalid does not resolve"]


def test_a_token_that_cannot_be_used_is_not_shown(tmp_path: Path) -> None:
    settings = read([f"confdir={tmp_path}", "balancer_token=with space"])
    assert [each.level for each in settings.findings] == [Level.PROBLEM]
    assert "with space" not in repr(settings)


def listed(entries: list[str], running: list[dict[str, Any]], confdir: Path) -> tuple[list[str], list[str]]:
    settings = read([f"confdir={confdir}"])
    settings.agents = entries
    found, findings = asyncio.run(agents.listed(settings, ports.Running(found=True, agents=running)))
    return [f"{each.name}={each.address}" for each in found], [each.what for each in findings]


def test_an_agent_of_several_lists_is_one(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text('{"version": 1, "agents": [{"name": "b", "url": "http://b:1"}]}')
    running: list[dict[str, Any]] = [{"name": "a", "url": "http://a:1"}, {"name": "b", "url": "http://b:1"}]
    assert listed(["a=http://a:1"], running, tmp_path) == (["a=a:1", "b=b:1"], [])
    found, findings = listed(["a=http://a:1", "a=http://a:1", "b=http://c:1"], running, tmp_path)
    assert found == ["a=a:1", "b=c:1", "b=b:1"]
    assert findings[0] == "a is listed twice in balancer_agents"
    assert findings[1].startswith("the name b is used twice: http://c:1 (balancer_agents) and http://b:1 (registered)")


def test_a_hostile_list_is_survived(tmp_path: Path) -> None:
    running: list[dict[str, Any]] = [{}, {"name": ["x"], "url": 7}, {"name": "a", "url": "http://user:secret@h\x00"}]
    found, findings = listed(["ftp://x", "=", "http://u:secret@h"], running, tmp_path)
    assert found == []
    assert len(findings) == 6
    assert "secret" not in "".join(findings)


def test_of_many_agents_some_are_shown_and_the_others_counted() -> None:
    def examined(number: int) -> agents.Examined:
        agent = agents.Listed(f"gpu-{number}", Address("h", 1), agents.OPTION)
        return agents.Examined(agent, [ok(agent.name) if number < 500 else problem(agent.name, "do")])

    found = agents._shortened([examined(number) for number in range(1000)])
    assert len(found) == agents.MAX_FINE + agents.MAX_WRONG + 2
    output = io.StringIO()
    report = Report(output)
    report.add(*found)
    report.close()
    assert output.getvalue().endswith("\n500 problems.\n")
    assert [each.what for each in found if "more" in each.what] == [
        "480 more agents answer and have models",
        "400 more agents have problems",
    ]


def test_what_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "DEADLINE", 0.0)

    async def forever(self: object) -> agents.Examined:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(agents.Examination, "run", forever)
    agent = agents.Listed("a", Address("h", 1), agents.OPTION)
    assert [each.what for each in asyncio.run(agents.check([agent], 1, 1))] == ["1 agent was not checked within 0 s"]
