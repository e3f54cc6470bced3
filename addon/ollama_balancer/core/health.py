"""Whether an agent that answers also serves: strikes, ejection and return. Pure: time and chance are handed in.

    healthy ── 3 strikes in a row ──► ejected (10 s x 2^k) ── one request tries it ──► returning (30 s) ──► healthy
       ▲                                 ▲        │ the trial fails: k + 1                 │ a strike: k + 1
       └── a success clears strikes      └────────┴────────────────────────────────────────┘

An agent that was offline and is back is returning, too: it is empty and cool, and would attract everything at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

EJECTION_THRESHOLD = 3
"""Failures in a row that eject an agent."""

FIRST_EJECTION = 10.0
"""Seconds; each return that fails doubles them."""

LONGEST_EJECTION = 300.0

JITTER = 0.1
"""Of an ejection's length, up or down, so that agents which failed together do not return together."""

SLOW_START_SECONDS = 30.0
"""Seconds for which an agent that is back gets no more than it runs at once."""


class Phase(StrEnum):
    HEALTHY = "healthy"
    EJECTED = "ejected"
    SLOW_START = "returning"


@dataclass(slots=True)
class Health:
    """What the requests of one agent have shown. Times are seconds of the caller's monotonic clock."""

    phase: Phase = Phase.HEALTHY
    consecutive_failures: int = 0
    """Failures since the last success."""
    ejections: int = 0
    """In a row: without a return that held."""
    until: float = 0.0
    """Of an ejected agent: when it may be tried. Of a returning one: when it is healthy."""
    reason: str = ""
    """The last failure."""

    @property
    def is_limited(self) -> bool:
        """Whether the agent gets less than it could run."""
        return self.phase is not Phase.HEALTHY

    def failed(self, now: float, reason: str, *, chance: float, half_open: bool, may_eject: bool) -> bool:
        """A request failed; True if that ejects the agent, for the first time or again.

        `chance` is a random number from 0 to 1, `trial` says that the request was let through to try an ejected agent,
        `may_eject` whether the fleet can spare it. What an agent had running when it was ejected does not count again.
        """
        self.reason = reason
        if self.phase is Phase.EJECTED:
            if half_open:
                self._eject(now, chance)
            return half_open
        self.consecutive_failures += 1
        if not may_eject or (self.phase is Phase.HEALTHY and self.consecutive_failures < EJECTION_THRESHOLD):
            return False
        self._eject(now, chance)
        return True

    def succeeded(self, now: float, *, half_open: bool) -> bool:
        """A request was served whole; True if the agent returns by it."""
        if self.phase is Phase.EJECTED:
            if half_open:
                self.start_slowly(now)
            return half_open
        self.consecutive_failures = 0
        return False

    def start_slowly(self, now: float) -> None:
        """It may serve again, a little at a time."""
        self.phase, self.until, self.consecutive_failures = Phase.SLOW_START, now + SLOW_START_SECONDS, 0

    def passed(self, now: float) -> bool:
        """Time has gone by; True if a returning agent is healthy by now."""
        if self.phase is not Phase.SLOW_START or now < self.until:
            return False
        self.phase, self.ejections = Phase.HEALTHY, 0
        return True

    def _eject(self, now: float, chance: float) -> None:
        seconds = min(LONGEST_EJECTION, FIRST_EJECTION * 2**self.ejections)
        seconds = min(LONGEST_EJECTION, seconds * (1 + JITTER * (2 * chance - 1)))
        self.phase, self.until = Phase.EJECTED, now + seconds
        if seconds < LONGEST_EJECTION:
            self.ejections += 1
