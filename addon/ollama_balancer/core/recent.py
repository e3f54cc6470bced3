"""What has been going on lately, for people who watch: rates, the time to the first token, and curves of each agent."""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .agent import Agent
from .stats import RequestSummary

WINDOW = 60.0
"""Seconds over which rates are taken."""

MAX_ENDED = 5_000
"""Requests kept of the window; where more end, the rates are those of a shorter time."""

STEP = 15.0
"""Seconds between two points of a curve."""

POINTS = 60
"""Of a curve: a quarter of an hour."""

MAX_DECISIONS = 50


@dataclass(eq=False)
class Curve:
    """One agent's last quarter of an hour, the newest last."""

    in_flight: deque[int]
    cpu: deque[int | None]
    """Whole percents; None: not known."""


class Recent:
    """`clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self._summaries: deque[tuple[float, RequestSummary]] = deque(maxlen=MAX_ENDED)
        self._curves: dict[str, Curve] = {}
        self._next_point = clock()
        self.decisions: deque[dict[str, Any]] = deque(maxlen=MAX_DECISIONS)
        """The last requests that ended, the newest last; without a word of their prompts."""
        self._total = 0

    def add(self, summary: RequestSummary, decision: dict[str, Any] | None = None) -> None:
        """`decision` is what is shown of it; None: nothing."""
        now = self._clock()
        self._summaries.append((now, summary))
        self._total += 1
        if decision is not None:
            decision["at"], decision["id"] = now, self._total
            self.decisions.append(decision)

    def sample(self, agents: Iterable[Agent]) -> None:
        """Go on with the curves, if it is time to."""
        now = self._clock()
        if now < self._next_point:
            return
        self._next_point = now + STEP
        curves = {}
        for agent in agents:
            curve = self._curves.get(agent.id) or Curve(deque(maxlen=POINTS), deque(maxlen=POINTS))
            curve.in_flight.append(agent.in_flight)
            curve.cpu.append(round(agent.metrics.cpu_usage) if agent.metrics is not None and agent.fresh else None)
            curves[agent.id] = curve
        self._curves = curves  # without those of agents that are no more

    def curve(self, agent: Agent) -> Curve | None:
        return self._curves.get(agent.id)

    def figures(self) -> dict[str, float | None]:
        """Per second: requests and tokens; in percent: failures; in seconds: the 95th percentile of the TTFT."""
        now = self._clock()
        while self._summaries and self._summaries[0][0] < now - WINDOW:
            self._summaries.popleft()
        summary = [each for _, each in self._summaries]
        full = len(summary) == MAX_ENDED
        seconds = now - self._summaries[0][0] if full else min(WINDOW, now - self._started)
        seconds = max(seconds, 1.0)
        bad = sum(each.outcome in ("failed", "refused") for each in summary)
        first = sorted(each.first_token for each in summary if each.first_token is not None)
        return {
            "requests_per_second": len(summary) / seconds,
            "tokens_per_second": sum(each.output_tokens for each in summary) / seconds,
            "failures": bad / len(summary) * 100 if summary else 0.0,
            "ttft_p95": first[math.ceil(0.95 * len(first)) - 1] if first else None,
        }
