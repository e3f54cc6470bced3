"""How long a host's report was on its way, though its clock and ours show different times."""

import math
from dataclasses import dataclass

WINDOW = 60.0
"""Seconds: the quickest report of the last one or two of these is taken to have arrived at once. That follows clocks
that drift or are set anew."""

LONGEST = 60.0
"""Seconds: a report that seems to have taken longer comes from a host whose clock was set anew."""


@dataclass(eq=False, slots=True)
class ReportDelay:
    began: float = -math.inf
    lowest: float = math.inf
    """By how much our clock was ahead of the host's at its quickest report of this window, in seconds."""
    before: float = math.inf
    """And of the one before."""

    def of(self, host_time: float, now: float) -> float:
        """Seconds that a report was on its way that arrives now; `host_time` is what the host's clock showed."""
        ahead, passed = now - host_time, now - self.began
        if passed >= 2 * WINDOW or ahead - min(self.lowest, self.before) > LONGEST:
            self.began, self.lowest, self.before = now, ahead, math.inf
        elif passed >= WINDOW:
            self.began, self.lowest, self.before = now, ahead, self.lowest
        self.lowest = min(self.lowest, ahead)
        return ahead - min(self.lowest, self.before)
