"""The events outlive the process, and a file that is no list of events does not keep it from starting."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from ollama_balancer.core.events import MAX_EVENTS, Event, EventKind, Events
from ollama_balancer.storage.events import MAX_BYTES, EventFile
from tests.core.fakes import Clock

STARTED = {"number": 1, "time": 1.0, "kind": "started", "agent": None, "key": None, "reason": ""}


def full() -> list[Event]:
    events = Events(Clock())
    for number in range(MAX_EVENTS):
        events.agent_changed(f"gpu-{number}" + "x" * 50, EventKind.EJECTED, "é" * 300)
    return list(events)


def test_what_is_saved_is_read_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    events, file = full(), EventFile(tmp_path / "folder" / "events.json")
    assert file.read() == []
    assert file.save(events)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert file.path.stat().st_size < MAX_BYTES
    assert EventFile(file.path).read() == events


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        json.dumps({"version": 2, "events": []}).encode(),
        json.dumps({"version": 1, "events": [STARTED | {"kind": "exploded"}]}).encode(),
        json.dumps({"version": 1, "events": [STARTED | {"number": -1}]}).encode(),
        json.dumps({"version": 1, "events": [STARTED | {"reason": "x" * 1000}]}).encode(),
        json.dumps({"version": 1, "events": [STARTED] * (MAX_EVENTS + 1)}).encode(),
        b'{"version": 1, "events": [' + b" " * MAX_BYTES + b"]}",
    ],
)
def test_a_damaged_file_is_set_aside(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    file = EventFile(tmp_path / "events.json")
    file.path.write_bytes(content)
    assert file.read() == []
    assert "is not a valid list of events" in caplog.text
    assert (tmp_path / "events.json.damaged").read_bytes() == content
    assert file.save(full())
    assert len(file.read()) == MAX_EVENTS


def test_what_is_read_has_no_control_characters(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "events.json")
    hostile = STARTED | {"agent": "a\x1b[2J", "reason": "b\nc\u202e"}
    file.path.write_text(json.dumps({"version": 1, "events": [hostile]}))
    [event] = file.read()
    assert (event.agent, event.reason) == ("a [2J", "b c ")


def test_a_file_that_cannot_be_opened_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("somebody else's")
    file = EventFile(tmp_path / "events.json")
    os.symlink(elsewhere, file.path)
    assert file.read() == []
    assert "symbolic link" in caplog.text
    assert file.save(full())
    assert elsewhere.read_text() == "somebody else's"
    assert file.path.is_symlink()


def test_a_disk_that_takes_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    file = EventFile(tmp_path / "folder" / "events.json")
    (tmp_path / "folder").write_text("no folder")
    assert not file.save([])
    assert not file.save([])
    (tmp_path / "folder").unlink()
    assert file.save([])
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
