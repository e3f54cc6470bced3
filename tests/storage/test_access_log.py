"""The access log's file: bounded, private, and never in the way."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from ollama_balancer.storage import access_log
from ollama_balancer.storage.access_log import AccessLog
from ollama_balancer.storage.files import open_own


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def said() -> list[str]:
    return []


def test_lines_are_written_in_order_and_privately(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "access.jsonl"
    log = AccessLog(str(path), said.append)
    for number in range(2500):
        log.add({"time": 1_700_000_000.5, "number": number})
    log.close()
    assert [line["number"] for line in lines(path)] == list(range(2500))
    assert lines(path)[0]["time"] == "2023-11-14T22:13:20.500Z"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert said == []


def test_a_full_file_is_followed_by_a_new_one_and_so_many_are_kept(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "LINES_AT_ONCE", 10)
    path = tmp_path / "access.jsonl"
    log = AccessLog(str(path), said.append, max_bytes=200, kept=2)
    for number in range(100):
        log.add({"number": number})
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["access.jsonl", "access.jsonl.1", "access.jsonl.2"]
    assert all(file.stat().st_size <= 200 for file in files)
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    kept = [line["number"] for file in reversed(files) for line in lines(file)]
    assert kept == list(range(100 - len(kept), 100))
    assert said == []


def test_a_file_that_was_moved_is_followed_by_a_new_one(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "access.jsonl"
    log = AccessLog(str(path), said.append)
    log.add({"number": 1})
    wait_for(lambda: path.stat().st_size > 0)
    path.rename(tmp_path / "moved")
    log.add({"number": 2})
    log.close()
    assert (lines(tmp_path / "moved"), lines(path)) == ([{"number": 1}], [{"number": 2}])


def test_too_many_lines_are_dropped_and_counted(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "access.jsonl"
    log = AccessLog(str(path), said.append, max_waiting=5)
    for number in range(50):
        log.add({"number": number})
    wait_for(lambda: bool(said))
    log.close()
    assert len(said) == 1
    written = lines(path)
    notices = [line["dropped"] for line in written if "dropped" in line]
    assert sum(notices) == log.dropped
    assert len([line for line in written if "number" in line]) + log.dropped == 50


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.chaos
def test_a_full_disk_is_reported_once_and_lines_go_on_afterwards(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "access.jsonl"
    full = threading.Event()
    full.set()

    def open_full(path: Path, append: bool) -> BinaryIO:
        return FileIO("/dev/full", "ab") if full.is_set() else open_own(path, append=append)

    monkeypatch.setattr(access_log, "open_own", open_full)
    log = AccessLog(str(path), said.append)
    for dropped in (1, 2):
        log.add({"number": dropped})
        wait_for(lambda dropped=dropped: log.dropped == dropped)  # type: ignore[misc]
    full.clear()
    log.add({"number": 3})
    log.close()
    assert [line.get("number", line.get("dropped")) for line in lines(path)] == [2, 3]
    assert len(said) == 1
    assert "No space left on device" in said[0]


def test_no_links_are_followed_and_an_unwritable_path_is_refused(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "link", tmp_path, tmp_path / "no-such" / "file"):
        with pytest.raises(OSError):  # noqa: PT011
            AccessLog(str(path), said.append)
    assert not (tmp_path / "elsewhere").exists()


def test_standard_output_gets_lines(said: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog("-", said.append)
    log.add({"number": 1})
    log.close()
    assert capfd.readouterr().out == '{"number":1}\n'
    os.fstat(1)
