"""Requests in flight, as handles that are released once."""

from __future__ import annotations

from typing import Protocol

from .agent import Agent
from .agent_records import CachedPrompt, Outcome
from .concurrency import SlotLearner
from .decision import ScoredCandidate
from .demand import Demand

SUCCEEDED, FAILED, REJECTED = Outcome.SUCCEEDED, Outcome.FAILED, Outcome.REJECTED


class Lease:
    """A request in flight on an agent. It is released once. This one takes no slot: no model runs for it."""

    __slots__ = ("agent", "released")

    model: str | None = None
    """The canonical name of the model that is run for the request."""
    loading: bool = False
    """Whether the agent has to load the model for it, and has not begun to answer."""
    cold: bool = False
    """Whether the agent had the model to load when the request was sent there."""

    options: tuple[ScoredCandidate, ...] = ()
    """How the candidates were scored, the chosen one first; empty under policies that score nothing."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.released = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.agent.name}, {'released' if self.released else 'held'})"

    def release(self, outcome: Outcome | None = SUCCEEDED, seconds: float = 0.0) -> bool:
        """End the request; False (and no effect) if it has ended before.

        `seconds` is how long it took, for the statistics of the succeeded. Without an outcome it is not counted: the
        agent was not the right one to ask.
        """
        if self.released:
            return False
        self.released = True
        agent = self.agent
        agent.in_flight -= 1
        for board in agent.boards:
            board.update(agent)
        stats = agent.stats
        if outcome is SUCCEEDED:
            stats.succeeded += 1
            stats.response_seconds += seconds
        elif outcome is FAILED:
            stats.failed += 1
        elif outcome is REJECTED:
            stats.rejected += 1
        elif outcome is not None:
            stats.cancelled += 1
        return True

    def began(self) -> None:
        """The first byte of its answer is there."""


class SlotOwner(Protocol):
    """Who gave a slot away, and learns what becomes of it."""

    def answer_began(self, lease: SlotLease) -> None:
        """The first byte of its answer is there."""

    def lease_ended(self, lease: SlotLease, outcome: Outcome | None) -> None:
        """It has been released; without an outcome the agent was not the right one to ask."""


class SlotLease(Lease):
    """A request that takes one of the agent's slots for its model. Times are seconds of the registry's clock."""

    __slots__ = (
        "began_at",
        "cold",
        "demand",
        "known_tokens",
        "learner",
        "loading",
        "model",
        "options",
        "owner",
        "prompt",
        "slow",
        "sole",
        "taken_at",
    )

    model: str

    def __init__(
        self, agent: Agent, owner: SlotOwner, demand: Demand, taken_at: float, options: tuple[ScoredCandidate, ...] = ()
    ) -> None:
        super().__init__(agent)
        self.options = options
        self.owner = owner
        self.demand = demand
        self.model = demand.model
        self.loading = False
        self.cold = False
        self.sole = False
        """Whether the agent had nothing else to do then."""
        self.known_tokens = 0
        """Of the prompt, those that the agent had read before."""
        self.prompt: CachedPrompt | None = None
        """Its record among those that the loaded model has read; None: it has not been sent to a loaded model yet."""
        self.slow = 1.0
        """By which factor what else ran there slowed it, when its answer began."""
        self.learner: SlotLearner | None = None
        self.taken_at = taken_at
        self.began_at: float | None = None
        """When its answer began."""

    def release(self, outcome: Outcome | None = SUCCEEDED, seconds: float = 0.0) -> bool:
        if not super().release(outcome, seconds):
            return False
        self.owner.lease_ended(self, outcome)
        return True

    def began(self) -> None:
        if self.began_at is None and not self.released:
            self.owner.answer_began(self)
