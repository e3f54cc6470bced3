"""What went through in each minute of the last day, by agent and model. Pure, and bounded.

The rows of all minutes together are at most MAX_ROWS. Beyond that the oldest minutes lose detail, not totals: first
their agents, then their models.
"""

import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .stats import MAX_PAIRS, OTHER, OUTCOMES, RequestSummary

MINUTES = 24 * 60
"""Kept."""

MAX_ROWS = 100_000
"""21 MB, as `tracemalloc` counts rows of 70 pairs a minute."""

FIELDS = (
    "requests",
    "succeeded",
    "failed",
    "cancelled",
    "refused",
    "prompt_tokens",
    "output_tokens",
    "seconds",
    "waited",
    "first_tokens",
    "first_token_seconds",
    "rejected",
)
"""Of a row, in its order: counts, and sums in seconds. `first_tokens` is how many answers the sum after it is of.

A new one goes to the end: rows that were kept before it was known are shorter.
"""

MIN_FIELDS = 11
"""Of a row that was kept by an earlier version."""

_COUNTS = FIELDS[1:5]

_ONE = {name: (1, *(int(name == field) for field in _COUNTS)) for name in OUTCOMES}
"""By outcome, the counts of one request."""

type Key = tuple[str, str]
"""Agent and model; empty: none, or no more known."""


@dataclass(eq=False)
class Minute:
    rows: dict[Key, array[float]] = field(default_factory=dict)
    detail: int = 2
    """2: by agent and model, 1: by model, 0: in all."""

    def add(self, key: Key, values: Iterable[float]) -> bool:
        """Add to a row; whether it is new."""
        if self.detail < 2:
            key = ("", key[1] if self.detail else "")
        row = self.rows.get(key)
        if row is None:
            if len(self.rows) >= MAX_PAIRS:
                key = ("", OTHER)
                row = self.rows.get(key)
            if row is None:
                self.rows[key] = array("d", values)
                return True
        for index, value in enumerate(values):
            if value:
                row[index] += value
        return False

    def coarsen(self) -> None:
        """Give up a part of the detail."""
        rows, self.rows = self.rows, {}
        self.detail -= 1
        for key, values in rows.items():
            self.add(key, values)


class History:
    """`wall` gives the seconds since 1970: minutes are those of the clock on the wall, as they outlive a restart."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._minutes: dict[int, Minute] = {}
        """By number since 1970."""
        self._rows = 0

    @property
    def now(self) -> int:
        """The minute that runs."""
        return int(self._wall() // 60)

    def add(self, summary: RequestSummary) -> None:
        counts = _ONE.get(summary.outcome) or _ONE["failed"]
        first = summary.first_token
        first_token = (0, 0.0) if first is None else (1, first)
        sums = (summary.prompt_tokens, summary.output_tokens, summary.seconds, summary.waited or 0.0, *first_token)
        values = (*counts, *sums, int(summary.outcome == "rejected"))
        self.put(self.now, (summary.agent, summary.model), values)

    def put(self, number: int, key: Key, values: Iterable[float]) -> None:
        """Add a row to what is known of a minute, unless that is too long ago."""
        minute = self._minutes.get(number)
        if minute is None:
            if not self.now - MINUTES < number <= self.now:
                return
            minute = self._minutes[number] = Minute()
            self._forget()
        if minute.add(key, values):
            self._rows += 1
            if self._rows > MAX_ROWS:
                self._coarsen()

    def last(self, minutes: int) -> Iterator[tuple[int, Minute]]:
        """The last ones in which anything ended, with the one that runs; the oldest first."""
        first = self.now - minutes
        yield from ((number, self._minutes[number]) for number in sorted(self._minutes) if number > first)

    def _forget(self) -> None:
        """Let go of what is too old, and of what a clock that was wrong has put into the future."""
        now = self.now
        for number in [n for n in self._minutes if not now - MINUTES < n <= now + 1]:
            self._rows -= len(self._minutes.pop(number).rows)

    def _coarsen(self) -> None:
        for detail in (2, 1):
            for number in sorted(self._minutes):
                minute = self._minutes[number]
                if minute.detail == detail and len(minute.rows) > 1:
                    before = len(minute.rows)
                    minute.coarsen()
                    self._rows += len(minute.rows) - before
                    if self._rows <= MAX_ROWS * 3 // 4:
                        return
