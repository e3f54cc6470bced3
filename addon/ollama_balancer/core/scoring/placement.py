"""Which models are where in memory, and how much is asked of each: what is not to be pushed out for another."""

from __future__ import annotations

import math

from ..agent import Agent
from ..random_set import DrawingSet

MEMORY = 120.0
"""Seconds over which requests for a model are averaged. `--tune placement.MEMORY`: 30 is worse, 480 no better."""

MAX_MODELS = 1000
"""Models that are counted; of more, nothing is known."""

SELDOM = 1 / 60
"""Requests per second: what is asked for less often is not kept in memory at the cost of others.

`--tune placement.SELDOM`: better than 0 and 1/15, at the edge of the noise."""


class ModelUse:
    """Of one model: who has it, and how much is asked of it. Only `Placement` changes it."""

    __slots__ = ("_asked_at", "_changed_at", "_rate", "_usual", "free", "holders", "in_flight", "places", "slots")

    def __init__(self) -> None:
        self.places: dict[Agent, int] = {}
        """Agents that have it in memory or load it, and may be used; how many requests of it each runs at once."""
        self.holders: DrawingSet[Agent] = DrawingSet()
        self.free: DrawingSet[Agent] = DrawingSet()
        """Those of them that have a slot of it free."""
        self.slots = 0
        """All slots together."""
        self.in_flight = 0
        self._rate = 0.0
        self._asked_at = 0.0
        self._usual = 0.0
        self._changed_at = 0.0

    def asked(self, now: float) -> None:
        self._rate = self.rate(now) + 1 / MEMORY
        self._asked_at = now

    def rate(self, now: float) -> float:
        """Requests per second over the last minutes."""
        return self._rate * math.exp((self._asked_at - now) / MEMORY)

    def changed(self, by: int, waiting: int, now: float) -> None:
        """So many more requests are in flight now; `waiting` are not."""
        self._usual = self.usual(waiting, now)
        self._changed_at = now
        self.in_flight += by

    def usual(self, waiting: int, now: float) -> float:
        """Requests in flight and waiting, on average over the last minutes."""
        level = self.in_flight + waiting
        return level + (self._usual - level) * math.exp((self._changed_at - now) / MEMORY)

    def add(self, agent: Agent, slots: int, *, free: bool) -> None:
        self.slots += slots - self.places.get(agent, 0)
        self.places[agent] = slots
        self.holders.add(agent)
        if free:
            self.free.add(agent)
        else:
            self.free.discard(agent)

    def discard(self, agent: Agent) -> None:
        self.slots -= self.places.pop(agent, 0)
        self.holders.discard(agent)
        self.free.discard(agent)


class Placement:
    def __init__(self) -> None:
        self._models: dict[str, ModelUse] = {}

    def use(self, model: str) -> ModelUse:
        """What is known of the model (a canonical name), to be changed."""
        found = self._models.get(model)
        if found is None:
            found = ModelUse()
            if len(self._models) >= MAX_MODELS:
                self._models = {name: use for name, use in self._models.items() if use.places or use.in_flight}
            if len(self._models) < MAX_MODELS:
                self._models[model] = found
        return found

    def look(self, model: str) -> ModelUse:
        """The same, to be read."""
        return self._models.get(model) or ModelUse()

    def update(self, agent: Agent) -> None:
        """The agent may have other models in memory than before, or may be used, or not be used, now."""
        has = agent.models or {}
        present = {model for model in (*agent.warm, *agent.loading) if model in has} if agent.eligible else set()
        for model in agent.placed - present:
            self.use(model).discard(agent)
        for model in present:
            self.use(model).add(agent, agent.slots_for(model), free=model not in agent.full)
        agent.placed = present

    def refit(self, agent: Agent, model: str, slots: int) -> None:
        """The agent runs so many requests of the model at once; it may have a slot free, or none any more."""
        use = self.look(model)
        if agent in use.places:
            use.add(agent, slots, free=model not in agent.full)

    def pressure(self, model: str, waiting: int, now: float, without: Agent | None = None) -> float:
        """Requests for the model for each slot that it has in the fleet, but one agent's; infinite: no slot is left."""
        use = self.look(model)
        wanted = use.in_flight + waiting
        slots = use.slots - (use.places.get(without, 0) if without is not None else 0)
        if slots <= 0:
            return math.inf if wanted or use.rate(now) > SELDOM else 0.0
        return max(wanted, use.usual(waiting, now)) / slots
