"""What the parts of the registry share: the agents and their models, the pools, and the time of the next expiry.

A part tells the fleet what has changed about an agent; the fleet updates the pools and the placement and notifies the
scheduler. Parts whose state expires are `Expiring`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Protocol

from .agent import Agent
from .avoidance import Avoidance
from .events import EventKind
from .pools import Pools
from .same_host import SameHost
from .scoring.learning import Learner


class Expiring(Protocol):
    """A part whose state expires. Times are seconds of the registry's clock."""

    def expire(self, now: float) -> None:
        """Drop what has expired by now."""

    def next_expiry(self, now: float) -> float:
        """When the next thing expires; infinite: nothing does."""


class Fleet:
    """`clock` gives monotonic seconds, `chance` random numbers from 0 to 1."""

    def __init__(self, clock: Callable[[], float], chance: Callable[[], float]) -> None:
        self.clock = clock
        self.chance = chance
        self.agents: dict[str, Agent] = {}
        """By id."""
        self.holders: dict[str, dict[Agent, None]] = {}
        """By model (a canonical name), the agents known to have it, in whatever state."""
        self.undiscovered: dict[Agent, None] = {}
        """Agents whose models are not known yet."""
        self.pools = Pools(clock, self.agents, self.holders, self.undiscovered)
        self.hosts = SameHost()
        self.learner = Learner()
        self.avoidance = Avoidance(clock)
        self.generation = 0
        """Grows when an agent comes or goes, or what one has loaded, or its version, changes."""
        self.changed_models: set[str] = set()
        """Models whose entries or online holders have changed since the merged lists were last made."""
        self.next_expiry = math.inf
        self.expiring: list[Expiring] = []
        self.waiting: Callable[[str], int] = lambda model: 0
        """The number of queued requests for a model."""
        self.on_slot_free: Callable[[Agent, str], None] = lambda agent, model: None
        """Called when an agent may have a free slot for a model again."""
        self.on_change: Callable[[Agent], None] = lambda agent: None
        """Called when an agent may have become available or unavailable, or its models have changed."""
        self.on_load: Callable[[Agent], object] = lambda agent: None
        """Called when an agent has begun to load a model, or has ended that: it may have evicted another."""
        self.on_event: Callable[[str, EventKind, str], None] = lambda agent, kind, reason: None
        """Called with the name of an agent whose state has changed, and why."""
        self.on_unproven: Callable[[Agent], None] = lambda agent: None
        """Called when an agent starts to report and has not been reached yet: it needs a probe now."""

    def candidates(self, model: str) -> Iterator[Agent]:
        """The agents that have the model, and those whose models are unknown, in whatever state."""
        yield from self.holders.get(model, ())
        yield from self.undiscovered

    def memory_changed(self, agent: Agent) -> None:
        """Its loaded models or its eligibility have changed."""
        agent.epoch += 1
        self.learner.placement.update(agent)

    def eligibility_changed(self, agent: Agent) -> None:
        """Its eligibility or its models have changed."""
        self.memory_changed(agent)
        self.pools.place(agent)
        self.on_change(agent)

    def came_or_went(self, agent: Agent) -> None:
        """It has come online, gone offline or left."""
        self.generation += 1
        self.changed_models.update(agent.models or ())

    def settle_aliases(self, agent: Agent) -> None:
        """The agent has changed: another alias of its host may represent the host now."""
        self.aliases_changed(self.hosts.settle(agent))

    def aliases_changed(self, agents: list[Agent]) -> None:
        """These agents have become aliases, or are no longer."""
        for agent in agents:
            self.came_or_went(agent)
            self.eligibility_changed(agent)

    def forget_holder(self, model: str, agent: Agent) -> None:
        """The agent does not have the model any more."""
        holders = self.holders.get(model)
        if holders is not None:
            holders.pop(agent, None)
            if not holders:
                del self.holders[model]

    def expire_by(self, at: float) -> None:
        """Something expires at that time."""
        if at < self.next_expiry:
            self.next_expiry = at

    def expire(self) -> None:
        """Drop what has expired: one step for each report or probe."""
        now = self.clock()
        if now < self.next_expiry:
            return
        self.next_expiry = math.inf  # a callback may select an agent, which calls this again
        try:
            for part in self.expiring:
                part.expire(now)
        finally:
            self.next_expiry = min((part.next_expiry(now) for part in self.expiring), default=math.inf)
