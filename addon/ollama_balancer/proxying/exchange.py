"""One request on its way: what it asks for, who was tried, and the lease it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..fleet.agent import Agent, Outcome
from ..fleet.registry import Lease
from ..ollama.events import AnswerWatcher
from ..ollama.routes import Dialect, Route
from ..text import one_line


@dataclass(frozen=True)
class Attempt:
    """An agent that was tried in vain."""

    agent: str
    reason: str


@dataclass(eq=False)
class Exchange:
    """From the request's last byte to its end. It holds at most one lease; `end` gives it back, once."""

    client_id: str
    dialect: Dialect
    clock: Callable[[], float]
    """Monotonic seconds."""
    route: Route | None = None
    model: str | None = None
    """As the client spells it."""
    pin: str | None = None
    mode: str = ""
    why: str = ""
    lease: Lease | None = None
    taken: float = 0.0
    """When the lease was taken."""
    tried: list[Agent] = field(default_factory=list)
    failures: list[Attempt] = field(default_factory=list)
    watcher: AnswerWatcher | None = None
    first_byte: float | None = None
    outcome: Outcome | None = None
    problem: str | None = None
    tokens_per_second: float | None = None
    timer: asyncio.TimerHandle | None = None
    """Ends the wait for the first byte."""

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def agent(self) -> Agent | None:
        return self.lease.agent if self.lease else None

    @property
    def attempts(self) -> int:
        return len(self.tried)

    def take(self, lease: Lease) -> None:
        self.lease = lease
        self.taken = self.clock()
        self.tried.append(lease.agent)

    def fail_attempt(self, reason: str) -> Agent | None:
        """The agent failed before the client saw anything. Returns it."""
        agent = self.agent
        if self.lease is not None and self.lease.release(Outcome.FAILED):
            self.failures.append(Attempt(self.lease.agent.name, one_line(reason)))
        self.lease = None
        return agent

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def end(self, outcome: Outcome, problem: str | None = None) -> bool:
        """The request is over; False if it was before."""
        self.stop_timer()
        if self.outcome is not None:
            return False
        self.outcome = outcome
        self.problem = problem
        if self.lease is not None:
            self.lease.release(outcome, self.clock() - self.taken)
        return True

    def record(self) -> dict[str, Any]:
        """The decision and what came of it, as JSON-serialisable data."""
        agent = self.agent
        return {
            "agent": agent.name if agent else None,
            "url": agent.address.url if agent else None,
            "mode": self.mode,
            "why": self.why,
            "model": self.model,
            "pinned": self.pin is not None,
            "attempts": self.attempts,
            "failures": [{"agent": failure.agent, "reason": failure.reason} for failure in self.failures],
            "outcome": self.outcome,
            "problem": self.problem,
            "first_byte_ms": None if self.first_byte is None else round((self.first_byte - self.started) * 1000, 3),
            "total_ms": round((self.clock() - self.started) * 1000, 3),
            "tokens_per_second": None if self.tokens_per_second is None else round(self.tokens_per_second, 2),
        }
