"""Whether an agent that answers also serves: strikes, ejection and return. Pure: time and chance are handed in.

    healthy ── 3 strikes in a row ──► ejected (10 s x 2^k) ── one request tries it ──► returning (30 s) ──► healthy
       ▲                                 ▲        │ the trial fails: k + 1                 │ a strike: k + 1
       └── a success clears strikes      └────────┴────────────────────────────────────────┘

An agent that was offline and is back is returning, too: it is empty and cool, and would attract everything at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

STRIKES = 3
"""Failures in a row that eject an agent: as many as HAProxy's `fall` and Kubernetes' `failureThreshold` by default.

`--tune health.STRIKES`: 1 is as good, 10 somewhat better, as the hosts that fail there soon die or recover."""

FIRST_EJECTION = 10.0
"""Seconds, nginx's `fail_timeout` by default; each return that fails doubles them.

`--tune health.FIRST_EJECTION`: flat from 2 to 60."""

LONGEST_EJECTION = 300.0
"""Seconds, Envoy's `max_ejection_time` by default. `--tune health.LONGEST_EJECTION`: flat from 30 to 900."""

JITTER = 0.1
"""Of an ejection's length, up or down, so that agents which failed together do not return together."""

RETURNING = 30.0
"""Seconds for which an agent that is back gets no more than it runs at once.

`--tune health.RETURNING`: flat from 1 to 90."""


class Phase(StrEnum):
    HEALTHY = "healthy"
    EJECTED = "ejected"
    RETURNING = "returning"


@dataclass(slots=True)
class Health:
    """What the requests of one agent have shown. Times are seconds of the caller's monotonic clock."""

    phase: Phase = Phase.HEALTHY
    strikes: int = 0
    """Failures since the last success."""
    ejections: int = 0
    """In a row: without a return that held."""
    until: float = 0.0
    """Of an ejected agent: when it may be tried. Of a returning one: when it is healthy."""
    reason: str = ""
    """The last failure."""

    @property
    def limits(self) -> bool:
        """Whether the agent gets less than it could run."""
        return self.phase is not Phase.HEALTHY

    def failed(self, now: float, reason: str, *, chance: float, trial: bool, may_eject: bool) -> bool:
        """A request failed; True if that ejects the agent, for the first time or again.

        `chance` is a random number from 0 to 1, `trial` says that the request was let through to try an ejected agent,
        `may_eject` whether the fleet can spare it. What an agent had running when it was ejected does not count again.
        """
        self.reason = reason
        if self.phase is Phase.EJECTED:
            if trial:
                self._eject(now, chance)
            return trial
        self.strikes += 1
        if not may_eject or (self.phase is Phase.HEALTHY and self.strikes < STRIKES):
            return False
        self._eject(now, chance)
        return True

    def succeeded(self, now: float, *, trial: bool) -> bool:
        """A request was served whole; True if the agent returns by it."""
        if self.phase is Phase.EJECTED:
            if trial:
                self.came_back(now)
            return trial
        self.strikes = 0
        return False

    def came_back(self, now: float) -> None:
        """It may serve again, a little at a time."""
        self.phase, self.until, self.strikes = Phase.RETURNING, now + RETURNING, 0

    def passed(self, now: float) -> bool:
        """Time has gone by; True if a returning agent is healthy by now."""
        if self.phase is not Phase.RETURNING or now < self.until:
            return False
        self.phase, self.ejections = Phase.HEALTHY, 0
        return True

    def _eject(self, now: float, chance: float) -> None:
        seconds = min(LONGEST_EJECTION, FIRST_EJECTION * 2**self.ejections)
        seconds = min(LONGEST_EJECTION, seconds * (1 + JITTER * (2 * chance - 1)))
        self.phase, self.until = Phase.EJECTED, now + seconds
        if seconds < LONGEST_EJECTION:
            self.ejections += 1
