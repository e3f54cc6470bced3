"""The usage file: what each key has used, by hours of the last month and days of the last year."""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from ..core.ledger import (
    DAY_HOURS,
    DIMENSIONS,
    FIELDS,
    HOUR,
    MAX_DAYS,
    Groups,
    Ledger,
    Place,
    Query,
)
from .sqlite_file import DamagedError, SqliteFile, SqliteFileError

logger = logging.getLogger(__name__)

FILE_NAME = "ollama-balancer-usage.db"

WRITE_SECONDS = 3.0
"""Seconds for which usage is collected before it is written: what a kill loses at most."""

FAILED_FACTOR = 3
"""Times as long until the next try after one that failed."""

HOURS_DAYS = 32
"""Days of which the hours are kept."""

MAX_STORED = 500_000
"""Rows of the file, some 100 MB. Beyond that hours become days earlier, and then the oldest days go."""

MAX_GROUPS = 10_000
"""Groups that an answer may have."""

_MIGRATIONS = (
    f"""
    CREATE TABLE usage (
        start INTEGER NOT NULL,
        hours INTEGER NOT NULL,
        key TEXT NOT NULL,
        model TEXT NOT NULL,
        agent TEXT NOT NULL,
        {", ".join(f"{name} REAL NOT NULL" for name in FIELDS)},
        PRIMARY KEY (start, hours, key, model, agent)
    ) WITHOUT ROWID;
    """,
)

_COLUMNS = ", ".join((*Place._fields, *FIELDS))
_ADD = "ON CONFLICT DO UPDATE SET " + ", ".join(f"{name} = {name} + excluded.{name}" for name in FIELDS)
_INSERT = f"INSERT INTO usage ({_COLUMNS}) VALUES ({', '.join('?' * (len(Place._fields) + len(FIELDS)))}) {_ADD}"  # noqa: S608 - our own names
_SUMS = ", ".join(f"sum({name})" for name in FIELDS)
_DAY = f"start - start % {DAY_HOURS}"
_FOLD = (
    f"INSERT INTO usage ({_COLUMNS}) SELECT {_DAY}, {DAY_HOURS}, key, model, agent, {_SUMS} FROM usage "  # noqa: S608
    f"WHERE hours = 1 AND start < ? GROUP BY {_DAY}, key, model, agent {_ADD}"
)
_GROUPS = {"key": "key", "model": "model", "agent": "agent", "day": _DAY, "hour": "start"}
assert set(_GROUPS) == set(DIMENSIONS)


class TooManyGroupsError(ValueError):
    """A query wants more groups than an answer may have."""


class UsageFile:
    """Its methods may be called from any thread; they read and write the disk, and raise SqliteFileError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = SqliteFile(path, "usage file", _MIGRATIONS)

    def close(self) -> None:
        self.file.close()

    def add(self, rows: Mapping[Place, list[float]]) -> None:
        """Add the rows to those that are there: all or none."""
        with self.file.change() as connection:
            connection.executemany(_INSERT, [(*place, *values) for place, values in rows.items()])

    def fold(self, hour: int, most: int = MAX_STORED) -> None:
        """Put the hours of days long gone together, and forget what is older than a year. `hour` is the current one,
        since 1970; `most` the rows that may stay.
        """
        today = hour - hour % DAY_HOURS
        with self.file.change() as connection:
            connection.execute("DELETE FROM usage WHERE start < ?", (today - (MAX_DAYS - 1) * DAY_HOURS,))
            for days in (HOURS_DAYS, HOURS_DAYS // 4, 1, 0):
                before = (today - days * DAY_HOURS,)
                connection.execute(_FOLD, before)
                connection.execute("DELETE FROM usage WHERE hours = 1 AND start < ?", before)
                (count,) = connection.execute("SELECT count(*) FROM usage").fetchone()
                if count <= most:
                    return
            while count > most:
                connection.execute("DELETE FROM usage WHERE start = (SELECT min(start) FROM usage)")
                (count,) = connection.execute("SELECT count(*) FROM usage").fetchone()

    def tokens_of_day(self, day: int) -> dict[str, int]:
        """Tokens that each key used on that day (since 1970). Without a file none, and none is made."""
        if not self.file.exists():
            return {}
        with self.file.use() as connection:
            rows = connection.execute(
                "SELECT key, sum(prompt_tokens + output_tokens) FROM usage WHERE start >= ? AND start < ? GROUP BY key",
                (day * DAY_HOURS, (day + 1) * DAY_HOURS),
            )
            return {str(key): int(tokens) for key, tokens in rows}

    def sums(self, query: Query) -> Groups:
        """The sums of each group; without a file there are none. TooManyGroupsError: there are over MAX_GROUPS."""
        if not self.file.exists():
            return {}
        groups = ", ".join(_GROUPS[name] for name in query.by)
        condition = "start >= ? AND start < ?" + (" AND key = ?" if query.key is not None else "")
        values = (query.start, query.end) + (() if query.key is None else (query.key,))
        text = f"SELECT {groups}, {_SUMS} FROM usage WHERE {condition} GROUP BY {groups} LIMIT {MAX_GROUPS + 1}"  # noqa: S608
        with self.file.use() as connection:
            rows = connection.execute(text, values).fetchall()
        size = len(query.by)
        return checked({row[:size]: list(row[size:]) for row in rows})


def checked(groups: Groups) -> Groups:
    """The groups, unless they are too many (TooManyGroupsError)."""
    if len(groups) > MAX_GROUPS:
        raise TooManyGroupsError(
            f"by: there are more than {MAX_GROUPS} rows; group by less, or ask for a shorter time (from, to)"
        )
    return groups


class UsageLog:
    """Writes the ledger to the file every few seconds, in a thread of its own. While that fails, what is not written
    stays in the ledger.

    Its methods use the disk, and may be called from any thread.
    """

    def __init__(self, ledger: Ledger, seconds: float = WRITE_SECONDS) -> None:
        self.ledger = ledger
        self._seconds = seconds
        self._file: UsageFile | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._folded = 0
        """The hour in which old rows were last folded."""
        self._failed = False

    def open(self, path: Path) -> None:
        """Use that file, and read what each key has used today; from then on, write to it."""
        file = UsageFile(path)
        day = int(self.ledger.wall() // HOUR) // DAY_HOURS
        with self._lock:
            self._file = file
            try:
                self.ledger.restore(day, _whole(file, lambda: file.tokens_of_day(day)))
            except SqliteFileError as e:
                self._failed = True
                logger.warning("What keys have used today cannot be read (%s): it begins at none.", e)
            self._stopping = threading.Event()
            self._thread = threading.Thread(target=self._follow, args=(self._stopping,), name="usage file", daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Write all that there is. Failures are logged once."""
        with self._lock:
            self._flush()

    def sums(self, query: Query) -> Groups:
        """The sums of each group, up to now, sorted. SqliteFileError; TooManyGroupsError."""
        with self._lock:
            groups: Groups = {}
            if self._file is not None:
                self._flush()
                file = self._file
                groups = _whole(file, lambda: file.sums(query))
            for group, values in self.ledger.pending(query).items():
                before = groups.get(group)
                groups[group] = values if before is None else [a + b for a, b in zip(before, values, strict=True)]
        return dict(sorted(checked(groups).items()))

    def close(self) -> None:
        """Write what is left, and close the file."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stopping.set()
        if thread is not None:
            thread.join()
        with self._lock:
            self._flush()
            if self._file is not None:
                self._file.close()
                self._file = None

    def _follow(self, stopping: threading.Event) -> None:
        # Each try opens a file that has failed anew, which reads all of it.
        while not stopping.wait(self._seconds * (FAILED_FACTOR if self._failed else 1)):
            try:
                self.flush()
            except Exception:
                logger.exception("Saving usage failed; trying again.")

    def _flush(self) -> None:
        file = self._file
        if file is None or not (rows := self.ledger.take()):
            return
        try:
            _whole(file, lambda: file.add(rows))
        except BaseException as e:
            self.ledger.put_back(rows)
            if not isinstance(e, SqliteFileError):
                raise
            if not self._failed:
                logger.warning("Usage cannot be saved (%s): it is kept in memory until it can.", e)
            self._failed = True
            return
        if self._failed:
            logger.info("Usage is saved to %s again.", file.path)
        self._failed = False
        hour = int(self.ledger.wall() // HOUR)
        if hour != self._folded:
            self._folded = hour
            try:
                file.fold(hour)
            except SqliteFileError as e:
                logger.warning("Old usage cannot be put together (%s); trying again in an hour.", e)


def _whole[T](file: UsageFile, call: Callable[[], T]) -> T:
    """Make the call; if the file turns out to be damaged, begin a new one."""
    try:
        return call()
    except DamagedError as e:
        name = file.file.set_aside()
        logger.warning("Usage is counted anew: %s; it was renamed to %s.", e, name)
        return call()
