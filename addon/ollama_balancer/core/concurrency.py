"""How many requests of one model an agent runs at once, learned from when answers begin and end.

What runs beside each other is seen: answers that have begun and not ended. The end of one may be seen late, after the
next one on the host has begun, so an overlap counts only if it lasts. A host runs a model's requests first in, first
out; so an answer in one piece, whose beginning is not seen, has been under way since before a later request's began.

Now and then one more is sent than is known to run: a trial. Each that succeeds is followed by the next at once. It is
over when the newest request still waits when an older one ends, or when nothing came of it; the next one comes after a
pause, which doubles each time.
"""

from __future__ import annotations

import math
from typing import Protocol

from .demand import Demand

DOUBTS = 2
"""Times in a row that the newest request was seen waiting when an older one ended, until fewer run than was known.

Once is enough to end a trial: it costs no more than waiting until the next one.
`--tune concurrency.DOUBTS`: flat from 1 to 4."""

CONFIRMATIONS = 2
"""Overlaps that are seen until one more is known to run; a long one counts for two.

`--tune concurrency.CONFIRMATIONS`: 4 is as good, 1 worse."""

TRIES = 5
"""Answers for each slot, ended while one more was there than is known to run, until a trial has come to nothing.

`--tune concurrency.TRIES`: flat from 2 to 20."""

FIRST_PAUSE = 30.0
LONGEST_PAUSE = 600.0
"""Seconds between two trials. The host's settings may change.

`--tune concurrency.FIRST_PAUSE`: flat from 5 to 120. `--tune concurrency.LONGEST_PAUSE`: flat from 120 to 3,600."""

PAUSE_PART = 3.0
"""How many times as long as a trial the pause after it is, at least.

`--tune concurrency.PAUSE_PART`: flat from 1 to 10."""

PATIENCE = 1.0
"""Seconds beyond thrice the shortest wait for a first byte, after which a request that has none is held to wait.

`--tune concurrency.PATIENCE`: flat from 0.25 to 4."""

OVERLAP = 0.25
"""Seconds that an overlap has to last, at most: for longer, the end of an answer is hardly ever on its way.

The simulation has no network, which this is about: `--tune concurrency.OVERLAP` is flat from 0.05 to 1."""

OVERLAP_PART = 0.1
"""The part of an answer's usual time that is enough."""

SHORTEST_OVERLAP = 0.01

LONG_OVERLAP = 1.0
"""Seconds after which no answer's end is still on its way. `--tune concurrency.LONG_OVERLAP`: 0.5 and 3 are worse."""

HELD = 0.25
"""The part of a trial's answers that have to begin beside as many others as are known to run: else fewer do.

It counts where answers come in one piece; tests/core/test_concurrency.py has such hosts."""

LOOKS = 16
"""Answers that begin in a trial until that is judged."""

LONG_PROMPT = 100
"""Tokens from which on a prompt tells how long reading takes.

`--tune concurrency.LONG_PROMPT`: flat from 10 to 1,000."""

NEWEST = 0.2
"""The weight of the newest answer's time in their average. `--tune concurrency.NEWEST`: flat from 0.1 to 0.5."""


class SlotRequest(Protocol):
    """A request in a slot, as far as the learner looks at it."""

    @property
    def demand(self) -> Demand: ...
    @property
    def taken_at(self) -> float: ...
    @property
    def began_at(self) -> float | None: ...
    @property
    def cold(self) -> bool: ...
    @property
    def known_tokens(self) -> int: ...


class _Overlap:
    """Some answers were under way at a time."""

    __slots__ = ("at", "counted", "others")

    def __init__(self, at: float, others: set[SlotRequest]) -> None:
        self.at = at
        self.others = others
        """All but the one that began last; those that ended too soon are taken out."""
        self.counted = False


class SlotLearner:
    """The requests of one model on one agent, in the order they were sent. Times are seconds of the caller's clock."""

    __slots__ = (
        "_doubts",
        "_expected",
        "_held",
        "_last_end",
        "_looks",
        "_next_trial",
        "_overlap",
        "_pace",
        "_pause",
        "_quickest",
        "_seen",
        "_trial_at",
        "_tries",
        "_usual",
        "limit",
        "outstanding",
        "proven",
    )

    def __init__(self) -> None:
        self.outstanding: dict[SlotRequest, None] = {}
        self.proven = 1
        self.limit = 2
        """How many may be sent there at once. It changes only by what is told here."""
        self._seen = 0
        self._doubts = 0
        self._tries = 0
        self._looks = 0
        """Answers that have begun in this trial."""
        self._held = 0
        """Those of them that ran beside as many others as are known to run."""
        self._expected = 0.0
        """How many of them are to be, at least."""
        self._trial_at = 0.0
        """When the trial began."""
        self._pause = FIRST_PAUSE
        self._next_trial = -math.inf
        self._last_end = -math.inf
        self._quickest = math.inf
        """The shortest wait for a first byte, in seconds."""
        self._pace = 0.0
        """Seconds for a token of the prompt until the first byte."""
        self._usual = math.inf
        """Seconds that an answer takes."""
        self._overlap: _Overlap | None = None

    @property
    def due(self) -> float:
        """When `passed` is to be called, as an overlap will have lasted by then; infinite: there is none."""
        overlap = self._overlap
        return math.inf if overlap is None else overlap.at + (LONG_OVERLAP if overlap.counted else self._lasting())

    def sent(self, lease: SlotRequest) -> None:
        self.outstanding[lease] = None
        self._open(lease.taken_at)

    def began(self, lease: SlotRequest, now: float) -> None:
        """Its answer has begun; in one piece, it is there."""
        outstanding = self.outstanding
        if lease not in outstanding:
            return
        waited = now - lease.taken_at
        if lease.began_at is not None:
            self._quickest = min(self._quickest, waited)
        self.passed(now)
        if len(outstanding) <= self.proven:
            unread = lease.demand.tokens - lease.known_tokens
            if unread >= LONG_PROMPT and not lease.cold:
                self._pace += NEWEST * (waited / unread - self._pace)
            return
        self._looks += 1
        # Of answers in one piece, only that which overtakes all others is seen to run beside them.
        self._expected += HELD if lease.demand.streams else HELD / (2 * self.proven)
        sent_before = lease.taken_at - self._lasting()
        others = {other for other in outstanding if other is not lease and _runs(other, sent_before)}
        overlap = self._overlap
        if len(others) >= self.proven - 1 and (overlap is None or overlap.counted or len(others) > len(overlap.others)):
            self._overlap = _Overlap(now, others)

    def ended(self, lease: SlotRequest, now: float, *, whole: bool) -> None:
        """It is over; `whole`: as it should be, so that the host went on to the next one."""
        outstanding = self.outstanding
        if lease not in outstanding:
            return
        self.passed(now)
        overlap = self._overlap
        if overlap is not None and lease in overlap.others:
            overlap.others.remove(lease)
            if len(overlap.others) < self.proven - 1:
                self._overlap = None
        at_once = len(outstanding)
        del outstanding[lease]
        if whole:
            seconds = now - (lease.taken_at if lease.began_at is None else lease.began_at)
            self._usual = seconds if self._usual == math.inf else self._usual + NEWEST * (seconds - self._usual)
            if outstanding and lease.began_at is not None:
                self._doubt(next(reversed(outstanding)), at_once, now)
            self._last_end = now
            if at_once > self.proven:
                self._tries += 1
                if self._tries > TRIES * at_once:
                    self._pause_trials(now)
        self._open(now)

    def passed(self, now: float) -> bool:
        """Time has gone by; True if the limit has changed."""
        overlap, limit = self._overlap, self.limit
        if overlap is None or now < self.due:
            return False
        long = now >= overlap.at + LONG_OVERLAP
        if not overlap.counted:
            self._held += 1
        if len(overlap.others) < self.proven:
            self._overlap = None
            return False
        self._seen += CONFIRMATIONS if long else 1
        self._doubts = 0
        overlap.counted = True
        if long:
            self._overlap = None
        if self._seen >= CONFIRMATIONS:
            self.proven += 1
            self._pause = FIRST_PAUSE
            self._next_trial = now
            self._begin_anew()
        self._open(now)
        return self.limit != limit

    def _lasting(self) -> float:
        """Seconds."""
        return max(SHORTEST_OVERLAP, min(OVERLAP, OVERLAP_PART * self._usual))

    def _doubt(self, newest: SlotRequest, at_once: int, now: float) -> None:
        """Another has ended, and the newest of so many may wait for that."""
        if newest.began_at is not None:
            if at_once > self.proven:
                self._doubts = 0
            return
        known = at_once <= self.proven
        # Has the host less slots than is known? The one that has become free just now may be taken already.
        waited = now - (max(newest.taken_at, self._last_end) if known else newest.taken_at)
        if not newest.demand.streams or newest.cold or waited <= self._patience(newest):
            return
        self._seen = 0
        self._doubts += 1
        if self._doubts >= DOUBTS or not known:
            if known:
                self.proven = max(1, at_once - 1)
            self._pause_trials(now)

    def _patience(self, lease: SlotRequest) -> float:
        """Seconds after which it is held to wait."""
        unread = max(0, lease.demand.tokens - lease.known_tokens)
        return PATIENCE + 3 * (self._quickest + self._pace * unread)

    def _pause_trials(self, now: float) -> None:
        if self._looks >= LOOKS and self._held < self._expected:
            self.proven = max(1, self.proven - 1)
        self.limit = self.proven
        self._next_trial = now + max(self._pause, min(LONGEST_PAUSE, PAUSE_PART * (now - self._trial_at)))
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._seen = self._doubts = self._tries = self._looks = self._held = 0
        self._expected = 0.0
        self._overlap = None

    def _open(self, now: float) -> None:
        """Begin a trial, if one is due."""
        if now >= self._next_trial and self.limit <= self.proven:
            self.limit = self.proven + 1
            self._trial_at = now


def _runs(other: SlotRequest, sent_before: float) -> bool:
    """Whether the host runs it, when the answer to a request has begun that was sent a little later than that.

    Where its beginning is not seen, it is known by the order: but what waits for a load begins in any, and two that are
    sent at the same time may overtake each other.
    """
    if other.began_at is not None:
        return True
    return not (other.demand.streams or other.cold) and other.taken_at <= sent_before
