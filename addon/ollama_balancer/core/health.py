"""Outlier ejection: a circuit breaker for each agent. Pure: time and random numbers are passed in.

    healthy ── 3 failures in a row ──► ejected (10 s x 2^k) ── half-open probe serves ──► slow start (30 s) ──► healthy
       ▲                                  ▲        │ the probe fails: k + 1                  │ a failure: k + 1
       └── a success resets the count     └────────┴─────────────────────────────────────────┘

An agent that was offline goes through slow start too: it is idle, and would otherwise attract all requests at once.
"""

from dataclasses import dataclass
from enum import StrEnum

EJECTION_THRESHOLD = 3
"""Consecutive failures that eject an agent.

The default of HAProxy's `fall` and Kubernetes' `failureThreshold`. `--tune health.EJECTION_THRESHOLD`: 1 is as good, 10
somewhat better, as the hosts that fail there soon die or recover."""

FIRST_EJECTION = 10.0
"""Seconds of the first ejection; each failed probe doubles them.

The default of nginx's `fail_timeout`. `--tune health.FIRST_EJECTION`: flat from 2 to 60."""

LONGEST_EJECTION = 300.0
"""Seconds, the default of Envoy's `max_ejection_time`. `--tune health.LONGEST_EJECTION`: flat from 30 to 900."""

JITTER = 0.1
"""Part of an ejection's length, up or down, so that agents that failed together do not come back together."""

SLOW_START_SECONDS = 30.0
"""Seconds for which an agent that is back gets no more requests than it can run at once.

`--tune health.SLOW_START_SECONDS`: flat from 1 to 90."""


class Phase(StrEnum):
    HEALTHY = "healthy"
    EJECTED = "ejected"
    SLOW_START = "slow start"


@dataclass(slots=True)
class Health:
    """The state of one agent's circuit breaker. Times are seconds of the caller's monotonic clock."""

    phase: Phase = Phase.HEALTHY
    consecutive_failures: int = 0
    """Failures since the last success."""
    ejections: int = 0
    """Consecutive ejections, without a slow start that was completed."""
    until: float = 0.0
    """When an ejected agent may be probed, or when the slow start ends."""
    reason: str = ""
    """The last failure."""

    @property
    def is_limited(self) -> bool:
        """Whether the agent gets fewer requests than it could run."""
        return self.phase is not Phase.HEALTHY

    def failed(self, now: float, reason: str, *, chance: float, half_open: bool, may_eject: bool) -> bool:
        """A request failed; True if that ejects the agent, for the first time or again.

        `chance` is a random number from 0 to 1, `half_open` says that the request was the probe of an ejected agent,
        `may_eject` whether the fleet can spare it. Requests that ran when the agent was ejected do not count again.
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
        """A request succeeded; True if that ends the agent's ejection."""
        if self.phase is Phase.EJECTED:
            if half_open:
                self.start_slowly(now)
            return half_open
        self.consecutive_failures = 0
        return False

    def start_slowly(self, now: float) -> None:
        """Enter slow start."""
        self.phase, self.until, self.consecutive_failures = Phase.SLOW_START, now + SLOW_START_SECONDS, 0

    def passed(self, now: float) -> bool:
        """Time has passed; True if the slow start has ended."""
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
