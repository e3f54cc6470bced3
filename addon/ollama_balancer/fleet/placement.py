"""Which models are where in memory, and how much is asked of each: what is not to be pushed out for another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agent import Agent

MEMORY = 120.0
"""Seconds over which requests for a model are averaged."""

MAX_MODELS = 1000
"""Models that are counted; of more, nothing is known."""

SERVICE = 6.0
"""Seconds for which a request is taken to occupy its slot, to know how many are usual from how often they come."""

SELDOM = 1 / 60
"""Requests per second: what is asked for less often is not kept in memory at the cost of others."""


class ModelUse:
    """Of one model: who has it, and how much is asked of it. Only `Placement` changes it."""

    __slots__ = ("_asked_at", "_rate", "holders", "in_flight", "places", "slots")

    def __init__(self) -> None:
        self.holders: list[Agent] = []
        """Agents that have it in memory or load it, and may be used."""
        self.places: dict[Agent, tuple[int, int]] = {}
        """Of each of them, where it is in the list and how many requests of the model it runs at once."""
        self.slots = 0
        """All of those together."""
        self.in_flight = 0
        self._rate = 0.0
        self._asked_at = 0.0

    def asked(self, now: float) -> None:
        self._rate = self.rate(now) + 1 / MEMORY
        self._asked_at = now

    def rate(self, now: float) -> float:
        """Requests per second over the last minutes."""
        return self._rate * math.exp((self._asked_at - now) / MEMORY)

    def add(self, agent: Agent, slots: int) -> None:
        known = self.places.get(agent)
        if known is None:
            self.places[agent] = len(self.holders), slots
            self.holders.append(agent)
            self.slots += slots
        else:
            self.places[agent] = known[0], slots
            self.slots += slots - known[1]

    def discard(self, agent: Agent) -> None:
        known = self.places.pop(agent, None)
        if known is None:
            return
        at, slots = known
        self.slots -= slots
        last = self.holders.pop()
        if last is not agent:
            self.holders[at] = last
            self.places[last] = at, self.places[last][1]


class Placement:
    def __init__(self) -> None:
        self._models: dict[str, ModelUse] = {}

    def use(self, model: str) -> ModelUse:
        """What is known of the model (a canonical name)."""
        found = self._models.get(model)
        if found is None:
            found = ModelUse()
            if len(self._models) < MAX_MODELS:
                self._models[model] = found
        return found

    def update(self, agent: Agent, now: float) -> None:
        """The agent may have other models in memory than before, or may be used, or not be used, now."""
        present = {*agent.warm, *agent.loading} if agent.eligible else set()
        for model in agent.placed - present:
            self.use(model).discard(agent)
        for model in present:
            self.use(model).add(agent, agent.slots_for(model, now))
        agent.placed = present

    def pressure(self, model: str, waiting: int, now: float, without: int = 0) -> float:
        """Requests for the model for each slot that it has in the fleet, less some slots; infinite: no slot is left."""
        use = self.use(model)
        wanted = use.in_flight + waiting
        slots = use.slots - without
        rate = use.rate(now)
        if slots <= 0:
            return math.inf if wanted or rate > SELDOM else 0.0
        return max(wanted, rate * SERVICE) / slots
