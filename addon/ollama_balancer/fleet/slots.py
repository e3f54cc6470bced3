"""How many requests of one model an agent runs at once, learned from the order in which answers begin.

A host runs a model's requests first in, first out. So when an answer begins while requests that were sent there
earlier are unfinished, all of these run: that many at once are proven. One more than is proven is tried now and then;
where the newest still waits when an older one ends, as often as not, the host runs no more, and for a while no more
are sent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .leases import SlotLease

DOUBTS = 3
"""Times in a row that the newest request was seen waiting, until one more is no longer tried."""

CONFIRMATIONS = 2
"""Times that an overlap is seen until it counts: two requests may overtake each other on their way."""

REFUTED_SECONDS = 600.0
"""For how long: the host's settings may change."""

PATIENCE = 1.0
"""Seconds beyond thrice the shortest wait for a first byte, after which a request that has none is held to wait."""


class SlotLearner:
    """The requests of one model on one agent, in the order they were sent. Times are seconds of the caller's clock."""

    __slots__ = ("_doubts", "_quickest", "_refuted_until", "_seen", "outstanding", "proven")

    def __init__(self) -> None:
        self.outstanding: dict[SlotLease, None] = {}
        self.proven = 1
        self._seen = 0
        self._doubts = 0
        self._refuted_until = 0.0
        self._quickest = math.inf
        """The shortest wait for a first byte, in seconds."""

    def limit(self, now: float) -> int:
        """How many may be sent there at once."""
        return self.proven if now < self._refuted_until else self.proven + 1

    def began(self, lease: SlotLease) -> None:
        """Its answer has begun."""
        if lease not in self.outstanding:
            return
        if lease.began_at is not None:
            self._quickest = min(self._quickest, lease.began_at - lease.taken_at)
        at_once = 1
        for other in self.outstanding:
            if other is lease:
                break
            at_once += 1
        if at_once > self.proven:
            self._seen += 1
            if self._seen >= CONFIRMATIONS:
                self.proven += 1
                self._seen = self._doubts = 0
                self._refuted_until = 0.0

    def ended(self, lease: SlotLease, now: float, *, whole: bool) -> None:
        """It is over; `whole`: as it should be, so that the host went on to the next one."""
        if lease not in self.outstanding:
            return
        full = len(self.outstanding) > self.proven
        del self.outstanding[lease]
        if not (whole and full and self.outstanding and lease.began_at is not None):
            return
        newest = next(reversed(self.outstanding))
        patience = PATIENCE + 3 * self._quickest
        if newest.began_at is None and now - newest.taken_at > patience:
            self._doubts += 1
            if self._doubts >= DOUBTS:
                self._doubts = self._seen = 0
                self._refuted_until = now + REFUTED_SECONDS
