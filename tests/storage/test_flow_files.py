"""The files of saved flows: by day, private, bounded, and never half."""

from __future__ import annotations

import os
import stat
import sys
import threading
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from ollama_balancer.storage import flow_files
from ollama_balancer.storage.files import open_own
from ollama_balancer.storage.flow_files import FlowFiles, day_files
from ollama_balancer.storage.flow_store import QUIET_SECONDS, REMINDER_SECONDS, FlowStore
from tests.core.fakes import Clock

DAY = 86_400.0


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


class Fixture:
    """A folder and its clock; records are of so many bytes, in the form of a tnetstring."""

    def __init__(self, folder: Path, days: int = 7, size: int = 8000) -> None:
        self.now = seconds("2026-11-29T23:59:00")
        self.folder = folder
        self.files = FlowFiles(folder, days, size, lambda: self.now)

    def add(self, content: str) -> None:
        self.files.append(record(content))

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def content(self, name: str) -> str:
        return (self.folder / name).read_text()


def record(content: str) -> bytes:
    return b"%d:%s," % (len(content), content.encode())


@pytest.fixture
def store(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path / "new" / "flows")


def test_each_day_has_a_file_that_is_private_and_old_ones_go(store: Fixture) -> None:
    store.files.days = 2
    store.add("one")
    store.add("two")
    assert (store.names, store.content("ollama-2026-11-29.flow")) == (["ollama-2026-11-29.flow"], "3:one,3:two,")
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((store.folder / store.names[0]).stat().st_mode) == 0o600
    others = ["notes.txt", "ollama-2026-02-31.flow", "ollama-2026-01-01.flow.gz"]
    for name in [*others, "ollama-2026-11-01.flow", "ollama-2026-11-01.2.flow"]:
        (store.folder / name).touch()
    store.now += 60
    store.add("three")
    assert store.names == sorted([*others, "ollama-2026-11-29.flow", "ollama-2026-11-30.flow"])
    store.now += DAY
    store.files.tidy()  # without a request, too
    assert store.names == sorted([*others, "ollama-2026-11-30.flow"])


def test_the_files_take_no_more_than_their_limit_and_the_newest_stay(store: Fixture) -> None:
    for number in range(100):
        store.add(f"{number:090d}")
        assert sum(path.stat().st_size for path in store.folder.iterdir()) <= 8000
    files = [each.path for each in day_files(store.folder)]
    assert [each.name for each in files][-2:] == ["ollama-2026-11-29.9.flow", "ollama-2026-11-29.10.flow"]
    kept = [int(entry[3:]) for path in files for entry in path.read_text().split(",") if entry]
    assert kept == list(range(100 - len(kept), 100))
    assert len(kept) > 70
    store.files.size = 2000
    store.add("x" * 90)
    assert sum(path.stat().st_size for path in store.folder.iterdir()) <= 2000
    with pytest.raises(ValueError, match="larger than balancer_store_size"):
        store.add("x" * 2000)
    store.add("x" * 1500)  # larger than a part of the limit, and alone in its file
    assert sum(path.stat().st_size for path in store.folder.iterdir()) <= 2000


@pytest.mark.parametrize("left", ["5:hel", "5", "12", "nonsense"])
def test_nothing_is_added_after_a_part_of_a_flow(store: Fixture, left: str) -> None:
    store.add("one")
    store.files.close()
    with (store.folder / "ollama-2026-11-29.flow").open("a") as file:
        file.write(left)
    again = Fixture(store.folder)
    again.add("two")
    again.add("three")
    assert again.content("ollama-2026-11-29.flow") == f"3:one,{left}"
    assert again.content("ollama-2026-11-29.2.flow") == "3:two,5:three,"
    again.files.close()
    third = Fixture(store.folder)
    third.add("four")
    assert third.content("ollama-2026-11-29.2.flow") == "3:two,5:three,4:four,"


def test_a_file_that_others_could_read_is_theirs_no_more_and_links_are_not_followed(store: Fixture) -> None:
    store.folder.mkdir(parents=True)
    path = store.folder / "ollama-2026-11-29.flow"
    path.touch(0o644)
    store.add("one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    store.add("two")  # somebody has removed it
    assert path.read_text() == "3:two,"
    path.unlink()
    path.symlink_to(store.folder / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        store.add("three")
    assert not (store.folder / "elsewhere").exists()


class Written:
    """A store whose thread is the test."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.said: list[str] = []
        self.clock = Clock()
        self.fixture = Fixture(folder)
        self.store = FlowStore[str](self.fixture.files, self._encode, self.said.append, clock=self.clock, **limits)

    @staticmethod
    def _encode(flow: str) -> bytes:
        if flow == "odd":
            raise ValueError("unserializable object: My prompt")
        return record(flow)

    def add(self, *flows: str) -> None:
        for flow in flows:
            self.store.add(flow, len(flow))

    def write(self, after: float = 0.0) -> list[str]:
        """What the log says of it."""
        self.clock.now += after
        self.store.write()
        said, self.said[:] = self.said[:], []
        return said

    @property
    def content(self) -> str:
        return "".join(each.path.read_text() for each in day_files(self.fixture.folder))


def test_a_folder_that_is_removed_is_told_once_and_what_waits_is_written_when_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "flows"
    ours = Written(folder)
    ours.add("one")
    assert ours.write() == []
    moved = folder.rename(tmp_path / "moved")
    ours.add("two")
    [line] = ours.write()
    assert line == (
        f"balancer_store: prompts are not kept: {folder} cannot be written (No such file or directory). "
        "Make the folder again, or name another. Requests go on."
    )
    ours.add("three")
    assert [ours.write(after) for after in (1, QUIET_SECONDS, QUIET_SECONDS)] == [[], [], []]
    assert not folder.exists()  # its disk may be gone
    assert ours.write(REMINDER_SECONDS) == [line]
    moved.rename(folder)
    assert ours.write(1) == []
    assert ours.content == "3:one,3:two,5:three,"
    assert ours.write(QUIET_SECONDS) == [f"balancer_store: prompts are kept again in {folder}; none is missing."]
    assert ours.write(REMINDER_SECONDS) == []


def test_a_folder_that_cannot_be_made_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ours = Written(tmp_path / "file")
    ours.add("one")
    assert ours.write() == [
        f"balancer_store: prompts are not kept: {tmp_path}/file cannot be written (File exists). Name a folder. "
        "Requests go on."
    ]
    (tmp_path / "file").unlink()
    ours.write()
    assert ours.content == "3:one,"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_told_and_what_there_is_no_room_for_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]

    def open_full(path: Path, *, append: bool = False) -> BinaryIO:
        return FileIO("/dev/full", "ab") if full and append else open_own(path, append=append)

    monkeypatch.setattr(flow_files, "open_own", open_full)
    monkeypatch.setattr(os, "fchmod", lambda *_: None)  # not of /dev/full
    ours = Written(tmp_path, max_waiting=10)
    ours.add("12345", "odd", "67", "too much", "89")
    [line] = ours.write()
    assert "(No space left on device). Free some space, or lower balancer_store_size. Requests go on." in line
    assert line.endswith(" 2 requests are missing in the files.")
    full.clear()
    assert ours.write() == []
    assert ours.content == "5:12345,2:67,"
    assert ours.store.missing == 3
    ours.add("ab")
    [line] = ours.write(QUIET_SECONDS)
    assert line.endswith("; 1 request is missing.")
    assert ours.content == "5:12345,2:67,2:ab,"


def test_a_flow_that_cannot_be_written_is_told_without_what_is_in_it(tmp_path: Path) -> None:
    ours = Written(tmp_path)
    ours.add("odd", "x" * 9000, "one")
    [line] = ours.write()
    assert line == (
        "balancer_store: a request of 9006 bytes is larger than balancer_store_size. Requests go on. "
        "2 requests are missing in the files."
    )
    ours.add("odd")
    [line] = ours.write(REMINDER_SECONDS)
    assert line == (
        "balancer_store: a request cannot be written (ValueError). Requests go on. 1 request is missing in the files."
    )
    assert ours.content == "3:one,"


def test_one_flow_alone_may_be_larger_than_what_may_wait_and_the_thread_writes_to_the_end(tmp_path: Path) -> None:
    ours = Written(tmp_path, max_waiting=10)
    ours.store.start()
    ours.add("x" * 11)
    ours.store.close()
    assert ours.content == f"11:{'x' * 11},"
    assert ours.said == []


def test_nobody_waits_for_a_disk_that_hangs_and_what_waits_is_bounded(tmp_path: Path) -> None:
    hangs, works = threading.Event(), threading.Event()

    def encode(flow: str) -> bytes:
        hangs.set()
        assert works.wait(30)
        return record(flow)

    store = FlowStore[str](Fixture(tmp_path).files, encode, lambda _: None, max_waiting=30)
    store.start()
    store.add("0", 10)
    assert hangs.wait(30)
    for number in range(1, 10):
        store.add(str(number), 10)
    assert store.missing == 7
    works.set()
    store.close(30)
    assert [each.path.read_text() for each in day_files(tmp_path)] == ["1:0,1:1,1:2,"]
