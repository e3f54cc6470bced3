"""Usage as people ask for it and read it: queries, rows, CSV. Pure."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

from .ledger import COUNTS, DAY_HOURS, DIMENSIONS, FIELDS, HOUR, Query
from .stats import OUTCOMES

DEFAULT_DAYS = 30

MAX_TIME = 40
"""Characters of a time."""

LAST_SECOND = datetime(9999, 12, 31, tzinfo=UTC).timestamp()

FIGURES = ("requests", *FIELDS)
"""The columns of a row after those by which it is grouped."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""With what spreadsheets let a formula begin."""

type Row = dict[str, str | int | float]


def read_query(by: str, begin: str | None, end: str | None, now: float, key: str | None = None) -> Query:
    """The query of what somebody has written; by default of the last 30 days.

    `begin` and `end` are days, the last one included, or times, the end excluded. ValueError: one cannot be read; it
    says which (`by`, `from` or `to`) and what is accepted.
    """
    names = tuple(dict.fromkeys(by.split(",")))
    if not set(names) <= set(DIMENSIONS):
        raise ValueError(f"by: {by[:80]!r} is not accepted; it takes some of {','.join(DIMENSIONS)}")
    today = datetime.fromtimestamp(now, UTC).date()
    start = _midnight(today - timedelta(days=DEFAULT_DAYS - 1))
    last = _midnight(today + timedelta(days=1))
    if begin is not None:
        start = _read_time("from", begin, whole_day=False)
    if end is not None:
        last = _read_time("to", end, whole_day=True)
    return Query(names, int(start // HOUR), -int(-last // HOUR), key)


def _read_time(name: str, text: str, *, whole_day: bool) -> float:
    try:
        if len(text) > MAX_TIME:
            raise ValueError(text)
        if len(text) == len("2027-01-31"):
            seconds = _midnight(date.fromisoformat(text)) + whole_day * DAY_HOURS * HOUR
        else:
            time = datetime.fromisoformat(text)
            seconds = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            f"{name}: {text[:40]!r} is not accepted; it takes a day or a time in UTC, such as 2027-01-31 or "
            "2027-01-31T12:00:00Z"
        ) from None
    return min(max(seconds, 0.0), LAST_SECOND)


def _midnight(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


def described(query: Query, group: tuple[str | int, ...], values: Iterable[float]) -> Row:
    """A group as a row of an answer: what it is about, and its sums."""
    about = {name: _shown(name, value) for name, value in zip(query.by, group, strict=True)}
    figures = dict(zip(FIELDS, values, strict=True))
    counts = {name: int(figures[name]) for name in COUNTS}
    requests = sum(counts[outcome] for outcome in OUTCOMES)
    seconds = {name: round(figures[name], 3) for name in ("seconds", "waited")}
    return {**about, "requests": requests, **counts, **seconds}


def _shown(name: str, value: str | int) -> str | int:
    if not isinstance(value, int):
        return value
    time = datetime.fromtimestamp(value * HOUR, UTC)
    return time.strftime("%Y-%m-%d" if name == "day" else "%Y-%m-%dT%H:%M:%SZ")


def hour_text(hour: int) -> str:
    """An hour since 1970 as a time."""
    return str(_shown("hour", hour))


def as_csv(query: Query, rows: Sequence[Mapping[str, object]]) -> str:
    """The rows with a header. No name is a formula for the program that opens it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    columns = (*query.by, *FIGURES)
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
