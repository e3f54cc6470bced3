from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ollama_balancer.core.history import FIELDS, MIN_FIELDS, MINUTES, History
from ollama_balancer.core.stats import RequestSummary
from ollama_balancer.storage import history as history_file
from ollama_balancer.storage.history import HistoryFile, MinuteRecord, closed_minutes

NOW = 1_700_000_040.0
ROW = [1.0] * len(FIELDS)
OLD_ROW = [1.0] * MIN_FIELDS
"""As it was kept before there were rejections."""


def minute(number: int, requests: float = 1.0) -> MinuteRecord:
    return MinuteRecord(minute=number, rows=[("a", "m:latest", [requests, *ROW[1:]])])


def numbers(file: HistoryFile) -> list[int]:
    return [line.minute for line in file.read()]


def test_minutes_that_are_over_are_written_and_read_again(tmp_path: Path) -> None:
    now = NOW
    history = History(lambda: now)
    for _ in range(3):
        history.add(RequestSummary("a", 'm"\n', "/api/chat", "succeeded", 2.0, output_tokens=7))
        now += 60
    history.add(RequestSummary("", "", "other", "refused", 0.0))
    file = HistoryFile(tmp_path / "new folder" / "history.jsonl")
    first = int(NOW // 60)
    assert [line.minute for line in closed_minutes(history, first)] == [first + 1, first + 2]
    assert file.append(closed_minutes(history, 0, with_running=True))
    again = History(lambda: now)
    for line in HistoryFile(file.path).read():
        for agent, model, values in line.rows:
            again.put(line.minute, (agent, model), values)
    assert [(n, m.rows) for n, m in again.last(MINUTES)] == [(n, m.rows) for n, m in history.last(MINUTES)]
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_not_there_has_no_minutes(tmp_path: Path) -> None:
    assert HistoryFile(tmp_path / "none").read() == []


def test_of_two_lines_for_a_minute_the_later_one_counts(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "history.jsonl")
    file.append([minute(5), minute(6)])
    file.append([minute(6, 9.0), minute(7)])
    assert [(line.minute, line.rows[0][2][0]) for line in file.read()] == [(5, 1.0), (6, 9.0), (7, 1.0)]


def test_what_a_crash_cut_off_is_left_out_and_spoils_no_later_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history.jsonl"
    HistoryFile(path).append([minute(5), minute(6)])
    path.write_bytes(path.read_bytes()[:-20])
    file = HistoryFile(path)
    assert numbers(file) == [5]
    assert caplog.records == []
    file.append([minute(7)])
    assert numbers(file) == [5, 7]


@pytest.mark.parametrize(
    "wrong",
    [
        b"\x00\xff",
        b"[]",
        b'{"minute": -1, "rows": []}',
        b'{"minute": 5, "rows": [["a", "m", [1]]]}',
        json.dumps({"minute": 5, "rows": [["a", "m", [-1.0] * len(FIELDS)]]}).encode(),
        b'{"minute": 5, "rows": [["a", "m", [' + b", ".join([b"NaN"] * len(FIELDS)) + b"]]]}",
        b"[" * 100_000,
    ],
)
def test_lines_that_are_no_minutes_are_left_out_and_that_is_said(
    tmp_path: Path, wrong: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history.jsonl"
    HistoryFile(path).append([minute(5)])
    path.write_bytes(wrong + b"\n" + path.read_bytes())
    assert numbers(HistoryFile(path)) == [5]
    assert "1 lines of" in caplog.text


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "history.jsonl")
    for number in range(0, 4 * MINUTES, 100):
        assert file.append([minute(each) for each in range(number, number + 100)])
    assert file.path.read_bytes().count(b"\n") <= 2 * MINUTES + 200
    assert numbers(file)[-MINUTES:] == list(range(4 * MINUTES - MINUTES + 40, 4 * MINUTES + 40))
    assert os.listdir(tmp_path) == ["history.jsonl"]


def test_of_a_file_that_is_too_long_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = HistoryFile(tmp_path / "history.jsonl")
    file.append([minute(each) for each in range(100)])
    monkeypatch.setattr(history_file, "MAX_BYTES", 1000)
    read = numbers(HistoryFile(file.path))
    assert 5 < len(read) < 20
    assert read[-1] == 99


def test_a_disk_that_takes_nothing_is_said_once_and_again_when_it_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    blocked = tmp_path / "folder"
    blocked.write_text("a file where a folder should be")
    file = HistoryFile(blocked / "history.jsonl")
    assert [file.append([minute(5)]), file.append([minute(5)])] == [False, False]
    blocked.unlink()
    assert file.append([minute(5)])
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert numbers(file) == [5]


def test_a_minute_that_was_kept_before_there_were_rejections_is_read(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "history.jsonl")
    file.path.write_text(json.dumps({"minute": 5, "rows": [["a", "m", OLD_ROW]]}) + "\n")
    [line] = file.read()
    assert line.rows == [("a", "m", [*OLD_ROW, 0.0])]
    assert len(line.rows[0][2]) == len(FIELDS)
