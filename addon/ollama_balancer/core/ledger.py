"""Who used what: requests, tokens and seconds by key, model, agent and hour, until they are written. Pure, and bounded
whatever clients send.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from .stats import OTHER, OUTCOMES

NO_KEY = "(none)"
"""Stands for the key of calls without one. No key can have a name with parentheses."""

TOKEN = "(token)"  # noqa: S105 - a name
"""Stands for the key of calls with the balancer's token."""

OTHER_KEYS = "(other)"

HOUR = 3600
DAY_HOURS = 24

MAX_ROWS = 2_000
"""Rows of an hour that tell models and agents apart; beyond that, rows of keys alone."""

MAX_KEYS = 10_000
"""Keys that are told apart within an hour, and in the tokens of today."""

MAX_PENDING = 50_000
"""Rows that wait to be written. Beyond that they lose detail, not totals."""

MAX_SERIES = 200
"""Keys that the metrics tell apart."""

COUNTS = (*OUTCOMES, "prompt_tokens", "output_tokens")
FIELDS = (*COUNTS, "seconds", "waited")
"""Of a row, in its order: requests by outcome, tokens, seconds that hosts worked on them, and seconds in the queue."""

_OUTCOME = {outcome: index for index, outcome in enumerate(OUTCOMES)}
_PROMPT, _OUTPUT, _SECONDS, _WAITED = range(len(OUTCOMES), len(FIELDS))

DIMENSIONS = ("key", "model", "agent", "day", "hour")
"""By which usage can be grouped."""

MAX_DAYS = 366


class Entry(NamedTuple):
    """One request that has ended. Seconds; the agent is empty where none had it, or several."""

    key: str
    model: str
    agent: str
    outcome: str
    prompt_tokens: int
    output_tokens: int
    seconds: float
    waited: float


class Place(NamedTuple):
    """What a row is about. `start` is in hours since 1970, `hours` 1 or 24."""

    start: int
    hours: int
    key: str
    model: str
    agent: str


type Rows = dict[Place, list[float]]
type Groups = dict[tuple[str | int, ...], list[float]]


class Query(NamedTuple):
    """Which rows are wanted, in which groups. Hours since 1970, the end excluded; `key`: of that one alone."""

    by: tuple[str, ...]
    start: int
    end: int
    key: str | None = None

    def group(self, place: Place) -> tuple[str | int, ...] | None:
        """The group that a row belongs to; None if it is not wanted."""
        if not self.start <= place.start < self.end or self.key not in (None, place.key):
            return None
        groups: dict[str, str | int] = {
            "key": place.key,
            "model": place.model,
            "agent": place.agent,
            "day": place.start - place.start % DAY_HOURS,
            "hour": place.start,
        }
        return tuple([groups[name] for name in self.by])


class Ledger:
    """Collects what has ended since it was last taken. `wall` gives seconds since 1970; days are those of UTC.

    Rows may be taken, put back and read in another thread than the one that adds.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self.wall = wall
        self.requests: Counter[tuple[str, str]] = Counter()
        """By key and outcome, since the start."""
        self.prompt_tokens: Counter[str] = Counter()
        self.output_tokens: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._pending: Rows = {}
        self._hour = 0
        self._places: set[tuple[str, str, str]] = set()
        self._keys: set[str] = set()
        """Told apart in this hour."""
        self._day = 0
        self._today: dict[str, int] = {}
        self._named: set[str] = set()

    def add(self, entry: Entry) -> None:
        hour = int(self.wall() // HOUR)
        if hour != self._hour:
            self._hour, self._places, self._keys = hour, set(), set()
        tokens = entry.prompt_tokens + entry.output_tokens
        if tokens:
            self._begin_day(hour // DAY_HOURS)
            if entry.key in self._today or len(self._today) < MAX_KEYS:
                self._today[entry.key] = self._today.get(entry.key, 0) + tokens
        self._count(entry)
        place = self._place(hour, entry)
        with self._lock:
            row = self._pending.get(place)
            if row is None:
                row = self._pending[place] = [0.0] * len(FIELDS)
            row[_OUTCOME.get(entry.outcome, 1)] += 1
            row[_PROMPT] += entry.prompt_tokens
            row[_OUTPUT] += entry.output_tokens
            row[_SECONDS] += entry.seconds
            row[_WAITED] += entry.waited
            self._bound()

    def take(self) -> Rows:
        """The rows that have come since the last call."""
        with self._lock:
            rows, self._pending = self._pending, {}
        return rows

    def put_back(self, rows: Rows) -> None:
        """Rows that were taken and could not be written. They belong to the ledger again."""
        with self._lock:
            newer, self._pending = self._pending, rows
            for place, values in newer.items():
                _add(rows, place, values)
            self._bound()

    def pending(self, query: Query) -> Groups:
        """The sums of what waits to be written."""
        with self._lock:
            return grouped(query, self._pending)

    def restore(self, day: int, tokens: Mapping[str, int]) -> None:
        """What each key had used on that day (since 1970) by what is written; what waits comes on top."""
        if day != int(self.wall() // HOUR) // DAY_HOURS:
            return
        self._day, self._today = day, dict(tokens)
        waiting = self.pending(Query(("key",), day * DAY_HOURS, (day + 1) * DAY_HOURS))
        for (key,), values in waiting.items():
            used = int(values[_PROMPT] + values[_OUTPUT])
            self._today[str(key)] = self._today.get(str(key), 0) + used

    def used_today(self, key: str) -> int:
        """Tokens that the key has used since midnight UTC."""
        self._begin_day(int(self.wall() // HOUR) // DAY_HOURS)
        return self._today.get(key, 0)

    def _begin_day(self, day: int) -> None:
        if day != self._day:
            self._day, self._today = day, {}

    def _place(self, hour: int, entry: Entry) -> Place:
        """The row that the entry is counted in."""
        key, model, agent = place = entry.key, entry.model, entry.agent
        if place not in self._places:
            if len(self._places) < MAX_ROWS:
                self._places.add(place)
            else:
                model = agent = OTHER
        if key not in self._keys:
            if len(self._keys) < MAX_KEYS:
                self._keys.add(key)
            else:
                key, model, agent = OTHER_KEYS, OTHER, OTHER
        return Place(hour, 1, key, model, agent)

    def _count(self, entry: Entry) -> None:
        key = entry.key
        if key not in self._named:
            if len(self._named) < MAX_SERIES:
                self._named.add(key)
            else:
                key = OTHER_KEYS
        self.requests[key, entry.outcome] += 1
        self.prompt_tokens[key] += entry.prompt_tokens
        self.output_tokens[key] += entry.output_tokens

    def _bound(self) -> None:
        """If there are too many rows, put those of a day together: first those of each key, then all."""
        if len(self._pending) <= MAX_PENDING:
            return
        for of_key in (True, False):
            rows, self._pending = self._pending, {}
            for place, values in rows.items():
                day = place.start - place.start % DAY_HOURS
                key = place.key if of_key else OTHER_KEYS
                _add(self._pending, Place(day, DAY_HOURS, key, OTHER, OTHER), values)
            if len(self._pending) <= MAX_PENDING // 2:
                return


def _add(rows: Rows, place: Place, values: list[float]) -> None:
    row = rows.get(place)
    if row is None:
        rows[place] = values
    else:
        for index, value in enumerate(values):
            row[index] += value


def grouped(query: Query, rows: Mapping[Place, Iterable[float]]) -> Groups:
    """The sums of the rows that the query wants, by group."""
    groups: Groups = {}
    for place, values in rows.items():
        group = query.group(place)
        if group is not None:
            row = groups.setdefault(group, [0.0] * len(FIELDS))
            for index, value in enumerate(values):
                row[index] += value
    return groups
