"""The chain of the audit file: what changes and cuts show, and that several processes write one chain."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path

import pytest

from ollama_balancer.core.audit import FIRST, MAX_LINE, chained, hash_of, verify
from ollama_balancer.storage import audit
from ollama_balancer.storage.audit import FILE_NAME, LOCK_NAME, AuditFile


@pytest.fixture
def file(tmp_path: Path) -> AuditFile:
    file = AuditFile(tmp_path / "confdir")
    for number in range(5):
        file.append({"what": "test", "number": number})
    return file


def lines(file: AuditFile) -> list[bytes]:
    return file.path.read_bytes().splitlines(keepends=True)


def test_each_line_has_the_hash_of_the_one_before(file: AuditFile) -> None:
    written = lines(file)
    previous = [json.loads(line)["previous"] for line in written]
    assert previous == [FIRST, *(hash_of(line[:-1]) for line in written[:-1])]
    verdict = file.verify()
    assert (verdict.lines, verdict.last, verdict.problem) == (5, hash_of(written[-1][:-1]), None)
    assert {stat.S_IMODE(each.stat().st_mode) for each in file.path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("number", range(4))
def test_a_changed_line_shows_at_the_next_one(file: AuditFile, number: int) -> None:
    changed = lines(file)
    changed[number] = changed[number].replace(b"test", b"best")
    verdict = verify(changed)
    assert (verdict.lines, verdict.problem is not None) == (number + 2, True)


@pytest.mark.parametrize("number", range(4))
def test_a_missing_line_shows(file: AuditFile, number: int) -> None:
    cut = lines(file)
    del cut[number]
    verdict = verify(cut)
    assert (verdict.lines, verdict.problem is not None) == (number + 1, True)


def test_lines_in_another_order_and_added_ones_show(file: AuditFile) -> None:
    one, two, *others = lines(file)
    assert verify([two, one, *others]).lines == 1
    forged = chained({"what": "forged"}, hash_of(one[:-1])) + b"\n"
    assert verify([one, forged, two, *others]).lines == 3
    for odd in (b"no JSON\n", b"[]\n", b"{}\n", b'{"previous":1}\n', b"[" * 100_000 + b"\n"):
        assert verify([one, odd]).lines == 2
        assert verify([one, odd]).problem


def test_a_cut_at_the_end_shows_by_a_hash_that_was_kept(file: AuditFile) -> None:
    kept = file.verify().last
    file.append({"what": "later"})
    assert file.verify(kept).known
    file.path.write_bytes(b"".join(lines(file)[:3]))
    verdict = file.verify(kept)
    assert (verdict.problem, verdict.known) == (None, False)


def test_a_half_line_shows_also_once_more_was_added(file: AuditFile) -> None:
    file.path.write_bytes(file.path.read_bytes()[:-20])
    assert file.verify().lines == 5
    assert file.verify().problem
    file.append({"what": "later"})
    assert file.verify().lines == 5
    assert json.loads(lines(file)[-1])["what"] == "later"


def test_what_is_too_long_is_neither_written_nor_read_whole(file: AuditFile) -> None:
    with pytest.raises(OSError, match="too long"):
        file.append({"what": "x" * MAX_LINE})
    assert file.verify().lines == 5
    file.path.write_bytes(b"x" * (3 * MAX_LINE) + b"\n")
    assert file.verify().lines == 1
    assert file.verify().problem


@pytest.mark.parametrize("name", [FILE_NAME, LOCK_NAME])
def test_no_link_is_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        AuditFile(tmp_path).append({"what": "test"})
    assert not (tmp_path / "elsewhere").exists()


def test_whoever_cannot_get_the_lock_gives_up(file: AuditFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "LOCK_SECONDS", 0.05)
    with audit._locked(file._lock_path.open("ab")), pytest.raises(TimeoutError):
        file.append({"what": "test"})
    file.append({"what": "test"})
    assert file.verify().lines == 6


def _append(folder: Path, name: str) -> None:
    file = AuditFile(folder)
    for number in range(50):
        file.append({"who": name, "number": number})


@pytest.mark.e2e
def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append, args=(tmp_path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    verdict = AuditFile(tmp_path).verify()
    assert (verdict.lines, verdict.problem) == (150, None)
