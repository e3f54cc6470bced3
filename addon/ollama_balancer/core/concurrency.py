"""Learns how many requests of one model an agent runs at once, from when its answers begin and end.

Answers that have begun and not ended overlap: the host runs them in parallel. The end of an answer may be seen late,
after the next one has begun, so an overlap counts only if it lasts. A host serves a model's requests in FIFO order: an
unstreamed answer, whose beginning is not seen, has been running since before any later request's answer began.

Now and then a trial sends one request more than is proven to run. A trial that succeeds is followed by the next at
once. It fails when the newest request is still waiting as an older one ends, or when it proves nothing; the next trial
comes after a pause that doubles each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from .demand import Demand

DOUBTS = 2
"""Consecutive times that the newest request was still waiting when an older one ended, until the limit is lowered.

Once is enough to end a trial: it costs no more than waiting until the next one.

`--tune concurrency.DOUBTS`: flat from 1 to 4."""

CONFIRMATIONS = 2
"""Overlaps that prove one more slot; a long one counts for two.

`--tune concurrency.CONFIRMATIONS`: 4 is as good, 1 worse."""

TRIES = 5
"""Answers per slot that end during a trial until it has failed to prove anything.

`--tune concurrency.TRIES`: flat from 2 to 20."""

FIRST_PAUSE = 30.0
LONGEST_PAUSE = 600.0
"""Seconds between two trials. The host's settings may change.

`--tune concurrency.FIRST_PAUSE`: flat from 5 to 120. `--tune concurrency.LONGEST_PAUSE`: flat from 120 to 3,600."""

PAUSE_PART = 3.0
"""The shortest pause after a trial, as a multiple of the trial's length.

`--tune concurrency.PAUSE_PART`: flat from 1 to 10."""

PATIENCE = 1.0
"""Seconds beyond three times the shortest wait for a first byte, after which a request counts as waiting.

`--tune concurrency.PATIENCE`: flat from 0.25 to 4."""

OVERLAP = 0.25
"""The longest time that an overlap has to last, in seconds.

After that the end of an answer is hardly ever still on its way. The simulation has no network, which this is about:
`--tune concurrency.OVERLAP` is flat from 0.05 to 1."""

OVERLAP_PART = 0.1
"""The part of an answer's usual duration that an overlap has to last."""

SHORTEST_OVERLAP = 0.01

LONG_OVERLAP = 1.0
"""Seconds after which the end of an answer must have arrived.

`--tune concurrency.LONG_OVERLAP`: 0.5 and 3 are worse."""

HELD = 0.25
"""The part of a trial's answers that must begin beside as many others as are proven, or the limit is lowered.

It matters where answers are not streamed; tests/core/test_concurrency.py has such hosts."""

LOOKS = 16
"""Answers that begin in a trial before that is judged."""

FIRST_CHANCE = 0.5
"""The probability that the first trial succeeds. Each one that fails halves it."""

LONG_PROMPT = 100
"""Tokens of a prompt that is long enough to measure prefill.

`--tune concurrency.LONG_PROMPT`: flat from 10 to 1,000."""

NEWEST = 0.2
"""The weight of the newest answer in the moving averages.

`--tune concurrency.NEWEST`: flat from 0.1 to 0.5."""


class SlotRequest(Protocol):
    """A request in a slot: what the learner looks at."""

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
    """Answers that were running at the same time."""

    __slots__ = ("at", "counted", "others")

    def __init__(self, at: float, others: set[SlotRequest]) -> None:
        self.at = at
        self.others = others
        """All but the newest; those that end too soon are removed."""
        self.counted = False


@dataclass(eq=False, slots=True)
class SlotLearner:
    """The requests of one model on one agent, in the order they were sent. Times are seconds of the caller's clock."""

    outstanding: dict[SlotRequest, None] = field(default_factory=dict)
    proven: int = 1
    limit: int = 2
    """How many may be sent at once."""
    _seen: int = 0
    _doubts: int = 0
    _tries: int = 0
    _looks: int = 0
    """Answers that have begun in this trial."""
    _held: int = 0
    """Of these, the answers that ran beside as many others as are proven."""
    _expected: float = 0.0
    """The least number of these that is expected."""
    _trial_at: float = 0.0
    """When the trial began."""
    _pause: float = field(default_factory=lambda: FIRST_PAUSE)
    _next_trial: float = -math.inf
    _last_end: float = -math.inf
    _quickest: float = math.inf
    """The shortest wait for a first byte, in seconds."""
    _pace: float = 0.0
    """Seconds of prefill per token of the prompt."""
    _usual: float = math.inf
    """The usual duration of an answer, in seconds."""
    _overlap: _Overlap | None = None

    @classmethod
    def beside(cls, others: Iterable[SlotLearner]) -> SlotLearner:
        """One for another model of the same host: the server has one setting for all models."""
        best = max(others, key=lambda other: other.proven, default=None)
        if best is None:
            return cls()
        return cls(proven=best.proven, limit=best.limit, _pause=best._pause, _next_trial=best._next_trial)

    @classmethod
    def recalled(cls, proven: int, now: float) -> SlotLearner:
        """One of which so many slots were proven before. The next trial comes after a pause."""
        return cls(proven=proven, limit=proven, _next_trial=now + FIRST_PAUSE)

    @property
    def risk(self) -> float:
        """The probability that one more request than is proven has to wait on the host."""
        return 1 - FIRST_CHANCE * FIRST_PAUSE / self._pause

    @property
    def due(self) -> float:
        """When `passed` has to be called, since an overlap will have lasted; infinite: there is none."""
        overlap = self._overlap
        return math.inf if overlap is None else overlap.at + (LONG_OVERLAP if overlap.counted else self._lasting())

    def sent(self, lease: SlotRequest) -> None:
        self.outstanding[lease] = None
        self._open(lease.taken_at)

    def began(self, lease: SlotRequest, now: float) -> None:
        """Its answer has begun, or has arrived in one piece."""
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
        """It has ended; `whole`: normally, so that the host went on to the next one."""
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
        """Time has passed; True if the limit has changed."""
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
        """Seconds that an overlap has to last."""
        return max(SHORTEST_OVERLAP, min(OVERLAP, OVERLAP_PART * self._usual))

    def _doubt(self, newest: SlotRequest, at_once: int, now: float) -> None:
        """An answer has ended, and the newest request may have been waiting for that."""
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
        """Seconds after which the request counts as waiting."""
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
        """Start a trial, if one is due."""
        if now >= self._next_trial and self.limit <= self.proven:
            self.limit = self.proven + 1
            self._trial_at = now


def _runs(other: SlotRequest, sent_before: float) -> bool:
    """Whether the host is running the request, given that the answer to one sent later than that has begun.

    Where its beginning is not seen, it is known by the order: but what waits for a load begins in any, and two that are
    sent at the same time may overtake each other.
    """
    if other.began_at is not None:
        return True
    return not (other.demand.streams or other.cold) and other.taken_at <= sent_before
