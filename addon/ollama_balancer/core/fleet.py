"""What the parts of the registry share: the agents and who has which model, the pools, and what is due next.

A part tells the fleet what has changed about an agent; the fleet keeps the pools and the placement right and calls
whoever waits for it. Parts that let go of things after a while are `Expiring`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

from .agent import Agent
from .avoidance import Avoidance
from .pools import Pools
from .same_host import SameHost
from .scoring.learning import Learner


class Expiring(Protocol):
    """A part that holds what is over after a while. Times are seconds of the registry's clock."""

    def expire(self, now: float) -> None:
        """Let go of what is over by now."""

    def next_expiry(self, now: float) -> float:
        """When there is something to let go of again; infinite: nothing is held."""


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
        """Models whose entries or online holders have changed since somebody merged them and cleared this."""
        self.next_expiry = math.inf
        self.expiring: list[Expiring] = []
        self.waiting: Callable[[str], int] = lambda model: 0
        """How many requests wait for that model."""
        self.on_slot_free: Callable[[Agent, str], None] = lambda agent, model: None
        """Called when an agent may have a slot of that model free again."""
        self.on_change: Callable[[Agent], None] = lambda agent: None
        """Called when an agent may have begun or ceased to be one that serves, or serves other models."""
        self.on_load: Callable[[Agent], object] = lambda agent: None
        """Called when an agent has loaded a model, for which it may have pushed out another."""
        self.on_unproven: Callable[[Agent], None] = lambda agent: None
        """Called when an agent begins to report that it is alive and is still to be reached: it wants a probe now."""

    def candidates(self, model: str) -> Iterator[Agent]:
        """The agents that have the model, and those that may, in whatever state."""
        yield from self.holders.get(model, ())
        yield from self.undiscovered

    def memory_changed(self, agent: Agent) -> None:
        """Other models are in its memory, or it may be used or not be used."""
        agent.epoch += 1
        self.learner.placement.update(agent, self.clock())

    def eligibility_changed(self, agent: Agent) -> None:
        """It may be given requests now, or no more, or of other models."""
        self.memory_changed(agent)
        self.pools.place(agent)
        self.on_change(agent)

    def came_or_went(self, agent: Agent) -> None:
        """It is online now, or is no longer, or has left."""
        self.generation += 1
        self.changed_models.update(agent.models or ())

    def settle_aliases(self, agent: Agent) -> None:
        """The agent has changed: another of its host's names may be the one that gets the requests now."""
        self.aliases_changed(self.hosts.settle(agent))

    def aliases_changed(self, agents: list[Agent]) -> None:
        """These are aliases now, or are no longer."""
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
        """Something is over at that time."""
        if at < self.next_expiry:
            self.next_expiry = at

    def expire(self) -> None:
        """Let go of what is no longer fresh. Costs a step for each report or probe that has run out."""
        now = self.clock()
        if now < self.next_expiry:
            return
        self.next_expiry = math.inf  # who is told of a change may ask for an agent, which comes here again
        try:
            for part in self.expiring:
                part.expire(now)
        finally:
            self.next_expiry = min((part.next_expiry(now) for part in self.expiring), default=math.inf)
