"""Queries of usage as people write them, and answers as they read them."""

import csv
import io

import pytest

from ollama_balancer.core.ledger import FIELDS, Query
from ollama_balancer.core.usage_report import as_csv, described, hour_text, read_query

NOW = 1_700_000_000.0  # 2023-11-14T22:13:20Z
DAY = int(NOW // 86_400)


def test_by_default_it_is_the_last_thirty_days_by_key() -> None:
    assert read_query("key", None, None, NOW) == Query(("key",), (DAY - 29) * 24, (DAY + 1) * 24, None)


def test_the_last_day_is_included_and_a_time_ends_before_it() -> None:
    assert read_query("model,day,model", "2023-11-13", "2023-11-13", NOW)[:3] == (
        ("model", "day"),
        (DAY - 1) * 24,
        DAY * 24,
    )
    times = read_query("hour", "2023-11-13T06:30:00Z", "2023-11-13T07:00:00+01:00", NOW)
    assert times[1:3] == ((DAY - 1) * 24 + 6, (DAY - 1) * 24 + 6)
    assert hour_text(times.start) == "2023-11-13T06:00:00Z"
    assert read_query("hour", "2023-11-13T06:00", "2023-11-13T06:00:01", NOW)[1:3] == (times.start, times.start + 1)


def test_times_of_which_nothing_can_be_known_are_read() -> None:
    query = read_query("hour", "0001-01-01T00:00:00+14:00", "9999-12-31", NOW)
    assert hour_text(query.start) == "1970-01-01T00:00:00Z"
    assert hour_text(query.end) == "9999-12-31T00:00:00Z"


@pytest.mark.parametrize(
    ("by", "begin", "end", "named"),
    [
        ("prompt", None, None, "by"),
        (",", None, None, "by"),
        ("", None, None, "by"),
        ("key, model", None, None, "by"),
        ("key; DROP TABLE usage", None, None, "by"),
        ("key", "yesterday", None, "from"),
        ("key", "2023-02-30", None, "from"),
        ("key", None, "", "to"),
        ("key", None, "1" * 5000, "to"),
        ("key", "0001-01-01T00:00:00+24:00", None, "from"),
    ],
)
def test_what_cannot_be_read_is_named(by: str, begin: str | None, end: str | None, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: .* is not accepted; it takes"):
        read_query(by, begin, end, NOW)


def test_no_name_in_a_table_is_a_formula() -> None:
    query = Query(("key", "model", "day"), 0, 1)
    names = ['=HYPERLINK("http://x")', "+1", "-1", "@x", "\tx", 'quo"te,d', "plain"]
    rows = [described(query, (name, name, DAY * 24), [1.0] * len(FIELDS)) for name in names]
    read = list(csv.DictReader(io.StringIO(as_csv(query, rows), newline="")))
    assert [row["key"] for row in read] == [f"'{name}" for name in names[:5]] + names[5:]
    assert {(row["day"], row["requests"], row["waited"]) for row in read} == {("2023-11-14", "5", "1.0")}
