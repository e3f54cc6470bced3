from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Source
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.storage.agents import StateFile
from tests.core.fakes import Clock, address, new_registry


def registry_of(*names: str) -> AgentRegistry:
    registry = new_registry(Clock())
    for number, name in enumerate(names, 1):
        registry.register(name, address(number))
    return registry


def test_what_is_written_is_restored(tmp_path: Path) -> None:
    registry = registry_of("a", "b", "c")
    registry.register("s", address(9), Source.STATIC)
    a, b, _, _ = registry
    registry.drain(a)
    registry.drain(b, until_registration=True)
    file = StateFile(tmp_path / "new folder" / "state.json")
    assert file.save(file.snapshot(registry))
    again = new_registry(Clock())
    assert StateFile(file.path).restore(again) == 3
    shown = [(agent.name, str(agent.address), agent.draining, agent.draining_until_registration) for agent in again]
    assert shown == [
        ("a", "10.0.0.1:11434", True, False),
        ("b", "10.0.0.2:11434", True, True),
        ("c", "10.0.0.3:11434", False, False),
    ]
    assert list(tmp_path.glob("**/*")) == [file.path.parent, file.path], "nothing else is left there"


def test_nothing_is_written_where_nobody_has_registered(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state.json")
    assert file.restore(registry_of()) == 0
    assert file.save(file.snapshot(registry_of()))
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_left_alone_where_nothing_has_changed(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state.json")
    registry = registry_of("a")
    assert file.save(file.snapshot(registry))
    before = file.path.stat().st_ino
    assert file.save(file.snapshot(registry))
    assert file.path.stat().st_ino == before
    registry.register("b", address(2))
    assert file.save(file.snapshot(registry))
    assert file.path.stat().st_ino != before


def test_the_last_one_leaves_an_empty_list(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state.json")
    registry = registry_of("a")
    assert file.save(file.snapshot(registry))
    registry.remove(*registry)
    assert file.save(file.snapshot(registry))
    assert json.loads(file.path.read_text()) == {"version": 1, "agents": []}


def test_what_is_newer_is_not_overwritten_by_what_comes_late(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state.json")
    late, newer = file.snapshot(registry_of("a")), file.snapshot(registry_of("b"))
    assert file.save(newer)
    assert file.save(late)
    assert "b" in [agent["name"] for agent in json.loads(file.path.read_text())["agents"]]


def test_whatever_may_be_registered_can_be_read_again(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state.json")
    registry = registry_of()
    host = ".".join(["a" * 60] * 50)[: 2048 - len("http://")].rstrip(".")
    for name, url in {
        "n" * 64: f"http://{host}",
        "v6": "http://[fe80::1%eth0]",
        "dashes": "http://-a_b-.:65535",
    }.items():
        registry.register(name, Address.parse(url))
    assert file.save(file.snapshot(registry))
    again = new_registry(Clock())
    assert StateFile(file.path).restore(again) == 3
    assert [agent.address for agent in again] == [agent.address for agent in registry]


def test_an_entry_that_is_no_agent_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.json"
    entries = [{"name": "no name!", "url": "http://h"}, {"name": "ok", "url": "http://h:1"}]
    path.write_text(json.dumps({"version": 1, "agents": entries, "later": "unknown"}))
    registry = registry_of()
    assert StateFile(path).restore(registry) == 1
    assert registry.get("ok") is not None
    assert "no name!" in caplog.text


def test_a_disk_that_takes_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (tmp_path / "file").write_text("in the way")
    file = StateFile(tmp_path / "file" / "state.json")
    assert not file.save(file.snapshot(registry_of("a")))
    assert not file.save(file.snapshot(registry_of("a", "b")))
    assert caplog.text.count("cannot be saved") == 1
    (tmp_path / "file").unlink()
    assert file.save(file.snapshot(registry_of("a", "b")))
    assert caplog.text.count("are saved to") == 1
    assert StateFile(file.path).restore(registry_of()) == 2
    file.path.unlink()
    file.path.mkdir()
    assert not file.save(file.snapshot(registry_of("c")))
    assert caplog.text.count("cannot be saved") == 2
    assert list(tmp_path.glob("file/*")) == [file.path], "nothing half written is left there"
