"""The usage file: what is kept and for how long, full disks, damage, and writers at the same time."""

import logging
import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from ollama_balancer.core.ledger import DAY_HOURS, FIELDS, HOUR, Entry, Ledger, Place, Query
from ollama_balancer.storage import usage as module
from ollama_balancer.storage.sqlite_file import DamagedError, SqliteFileError
from ollama_balancer.storage.usage import FILE_NAME, HOURS_DAYS, TooManyGroupsError, UsageFile, UsageLog
from tests.core.fakes import Clock

TODAY = 20_000 * DAY_HOURS
NOW = TODAY * HOUR + 5.0
ALWAYS = Query(("key",), 0, 10**9)


@pytest.fixture
def file(tmp_path: Path) -> UsageFile:
    return UsageFile(tmp_path / "conf" / FILE_NAME)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(Clock(NOW))


def quiet_log(ledger: Ledger) -> UsageLog:
    """One whose thread writes nothing by itself."""
    return UsageLog(ledger, seconds=3600.0)


def row(start: int, key: str = "alice", model: str = "m", agent: str = "a") -> Place:
    return Place(start, 1, key, model, agent)


def ones(*places: Place) -> dict[Place, list[float]]:
    return {place: [1.0] * len(FIELDS) for place in places}


def entry(key: str = "alice") -> Entry:
    return Entry(key, "m", "a", "succeeded", 30, 12, 2.5, 0.5)


def succeeded(groups: dict[tuple[str | int, ...], list[float]]) -> dict[tuple[str | int, ...], float]:
    return {group: values[0] for group, values in groups.items()}


def test_rows_are_added_to_those_that_are_there(file: UsageFile) -> None:
    assert (file.sums(ALWAYS), file.tokens_of_day(20_000)) == ({}, {})
    assert not file.path.parent.exists(), "reading makes no file"
    file.add(ones(row(TODAY), row(TODAY, "bob")))
    file.add(ones(row(TODAY), row(TODAY + 1, model="n")))
    again = UsageFile(file.path)
    assert succeeded(again.sums(ALWAYS)) == {("alice",): 3.0, ("bob",): 1.0}
    assert succeeded(again.sums(Query(("model", "hour"), 0, 10**9, "alice"))) == {("m", TODAY): 2, ("n", TODAY + 1): 1}
    assert again.tokens_of_day(20_000) == {"alice": 6, "bob": 2}
    assert again.tokens_of_day(19_999) == {}
    for each in file.path.parent.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) == 0o600


def test_hours_become_days_and_days_end_after_a_year(file: UsageFile) -> None:
    month, year = TODAY - HOURS_DAYS * DAY_HOURS, TODAY - 365 * DAY_HOURS
    old = [row(month - 1), row(month - 24), row(month - 25), row(year), row(year + 1, "bob"), row(year - 1)]
    file.add(ones(row(TODAY), row(month), *old))
    before = succeeded(file.sums(Query(("key",), year, 10**9)))
    for _ in range(2):
        file.fold(TODAY + 7)
        assert succeeded(file.sums(Query(("key",), year, 10**9))) == before
        hours = succeeded(file.sums(Query(("hour",), 0, 10**9)))
        assert hours == {(TODAY,): 1, (month,): 1, (month - 24,): 2, (month - 48,): 1, (year,): 2}
    # A late row of a day that is folded already.
    file.add(ones(row(month - 2)))
    file.fold(TODAY + 8)
    assert succeeded(file.sums(Query(("hour",), month - 24, month))) == {(month - 24,): 3}


def test_too_many_rows_lose_hours_first_and_then_the_oldest_days(file: UsageFile) -> None:
    for day in range(40):
        start = TODAY - day * DAY_HOURS
        file.add(ones(*[row(start + hour, f"key-{n}") for hour in range(3) for n in range(10)]))
    file.fold(TODAY + 5, most=700)
    hours = file.sums(Query(("hour",), 0, 10**9))
    assert len(hours) == 40 + 9 * 2, "the hours of eight days and today"
    assert sum(succeeded(hours).values()) == 40 * 30
    file.fold(TODAY + 5, most=105)
    left = succeeded(file.sums(Query(("hour",), 0, 10**9)))
    days = {(TODAY - day * DAY_HOURS,): 30.0 for day in range(1, 8)}
    assert left == days | {(TODAY + hour,): 10 for hour in range(3)}


def test_an_answer_has_so_many_rows(file: UsageFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GROUPS", 5)
    file.add(ones(*[row(TODAY, f"key-{n}") for n in range(6)]))
    with pytest.raises(TooManyGroupsError, match=r"^by: there are more than 5 rows"):
        file.sums(ALWAYS)
    assert len(file.sums(Query(("model",), 0, 10**9))) == 1


def test_the_log_writes_by_itself_and_at_the_end(file: UsageFile, ledger: Ledger) -> None:
    log = UsageLog(ledger, seconds=0.01)
    log.open(file.path)
    ledger.add(entry())
    written = threading.Event()
    while not written.is_set():
        if file.sums(ALWAYS):
            written.set()
        written.wait(0.01)
    log.close()
    assert not any(thread.name == "usage file" for thread in threading.enumerate())
    later = quiet_log(ledger)
    later.open(file.path)
    ledger.add(entry())
    assert succeeded(file.sums(ALWAYS)) == {("alice",): 1}
    later.close()
    later.close()
    assert succeeded(file.sums(ALWAYS)) == {("alice",): 2}
    assert UsageLog(ledger).sums(ALWAYS) == {}


def test_what_is_asked_for_is_up_to_date_and_counted_once(file: UsageFile, ledger: Ledger) -> None:
    log = quiet_log(ledger)
    ledger.add(entry())
    assert succeeded(log.sums(ALWAYS)) == {("alice",): 1}, "without a file"
    log.open(file.path)
    for count in range(2, 5):
        ledger.add(entry())
        assert succeeded(log.sums(ALWAYS)) == {("alice",): count}
    log.close()
    again = Ledger(ledger.wall)
    second = quiet_log(again)
    second.open(file.path)
    assert again.used_today("alice") == 4 * 42
    second.close()


def test_requests_that_end_while_it_is_written_are_counted_once(file: UsageFile, ledger: Ledger) -> None:
    log = UsageLog(ledger, seconds=0.001)
    log.open(file.path)
    for _ in range(2000):
        ledger.add(entry())
    log.close()
    assert succeeded(file.sums(ALWAYS)) == {("alice",): 2000}


def test_with_a_full_disk_usage_stays_in_memory_until_there_is_room(
    file: UsageFile, ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    log = quiet_log(ledger)
    log.open(file.path)
    ledger.add(entry("before"))
    log.flush()
    whole = sqlite3.connect

    def small(*arguments: object, **options: object) -> sqlite3.Connection:
        connection: sqlite3.Connection = whole(*arguments, **options)  # type: ignore[call-overload]
        connection.execute("PRAGMA max_page_count = 1")  # the pages that it has, and no more
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    assert log._file is not None
    log._file.close()
    for number in range(500):
        ledger.add(entry(f"key-{number}"))
    for _ in range(3):
        log.flush()
        assert len(log.sums(ALWAYS)) == 501, "it is answered all the same"
    assert [record.getMessage().count("disk is full") for record in caplog.records] == [1]
    monkeypatch.undo()
    log._file.close()
    log.flush()
    assert [record.getMessage().split(" to ")[0] for record in caplog.records][1:] == ["Usage is saved"]
    log.close()
    assert len(file.sums(ALWAYS)) == 501
    assert set(succeeded(file.sums(ALWAYS)).values()) == {1}


@pytest.mark.parametrize("open_before", [False, True])
def test_a_damaged_file_is_set_aside_with_one_line(
    file: UsageFile, ledger: Ledger, caplog: pytest.LogCaptureFixture, open_before: bool
) -> None:
    log = quiet_log(ledger)
    if open_before:
        log.open(file.path)
        ledger.add(entry())
        log.flush()
        for each in file.path.parent.iterdir():
            each.unlink()
    file.path.parent.mkdir(exist_ok=True)
    file.path.write_bytes(b"no database" * 1000)
    with pytest.raises(DamagedError, match=r"the usage file .* is damaged"):
        file.sums(ALWAYS)
    if not open_before:
        log.open(file.path)
    ledger.add(entry("bob"))
    log.close()
    assert succeeded(file.sums(ALWAYS)) == {("bob",): 1}
    assert len(list(file.path.parent.glob("*.damaged-*"))) == 1
    assert len(caplog.records) == 1
    assert "it was renamed to" in caplog.text


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_a_file_that_cannot_be_used_stops_nothing(
    tmp_path: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).symlink_to(tmp_path / "elsewhere")
    log = quiet_log(ledger)
    log.open(tmp_path / FILE_NAME)
    ledger.add(entry())
    log.flush()
    with pytest.raises(SqliteFileError, match="symbolic link"):
        log.sums(ALWAYS)
    log.close()
    assert not (tmp_path / "elsewhere").exists()
    assert len(caplog.records) == 1
    assert succeeded(ledger.pending(ALWAYS)) == {("alice",): 1}
