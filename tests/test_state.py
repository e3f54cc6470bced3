from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollama_balancer.fleet.agent import Source
from ollama_balancer.fleet.registry import AgentRegistry
from ollama_balancer.state import StateFile
from tests.fleet.fakes import Clock, address


def registry_of(*names: str) -> AgentRegistry:
    registry = AgentRegistry(Clock())
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
    text = file.content(registry)
    assert text is not None
    assert file.write(text)
    assert file.content(registry) is None, "nothing has changed"
    again = AgentRegistry(Clock())
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
    assert file.content(registry_of()) is None


def test_an_entry_that_is_no_agent_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.json"
    entries = [{"name": "no name!", "url": "http://h"}, {"name": "ok", "url": "http://h:1"}]
    path.write_text(json.dumps({"version": 1, "agents": entries, "later": "unknown"}))
    registry = registry_of()
    assert StateFile(path).restore(registry) == 1
    assert registry.get("ok") is not None
    assert "no name!" in caplog.text


def test_a_disk_that_takes_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    file = StateFile(tmp_path / "file" / "state.json")
    assert not file.write("1")
    assert not file.write("2")
    assert caplog.text.count("cannot be kept") == 1
    (tmp_path / "file").unlink()
    assert file.write("3")
    assert file.path.read_text() == "3"
