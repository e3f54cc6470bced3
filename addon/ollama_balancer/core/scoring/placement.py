"""Where each model is loaded, and the demand for it: what should not be evicted."""

import math
from dataclasses import dataclass, field

from ..agent import Agent
from ..random_set import RandomSet

MEMORY = 120.0
"""Seconds over which requests for a model are averaged.

`--tune placement.MEMORY`: 30 is worse, 480 no better."""

SHORTEST = 30.0
"""Seconds over which a rate is averaged at least."""

MAX_MODELS = 1000
"""Models that are tracked."""

SELDOM = 1 / 60
"""Requests per second below which a model is not kept loaded at the expense of others.

`--tune placement.SELDOM`: better than 0 and 1/15, at the edge of the noise."""


@dataclass(eq=False, slots=True)
class ModelUse:
    """The agents that have one model loaded, and the demand for it. Only `Placement` changes it."""

    slots_by_agent: dict[Agent, int] = field(default_factory=dict)
    """Eligible agents that have it loaded or are loading it, and their slots for it."""
    holders: RandomSet[Agent] = field(default_factory=RandomSet)
    free: RandomSet[Agent] = field(default_factory=RandomSet)
    """The holders with a free slot."""
    slots: int = 0
    """Slots of all holders."""
    in_flight: int = 0
    _rate: float = 0.0
    _first_arrival: float = math.inf
    _last_arrival: float = 0.0
    _average_load: float = 0.0
    _changed_at: float = 0.0

    def request_arrived(self, now: float) -> None:
        self._first_arrival = min(self._first_arrival, now)
        self._rate = self.rate(now) + 1 / MEMORY
        self._last_arrival = now

    def rate(self, now: float) -> float:
        """Requests per second over the last minutes."""
        return self._rate * math.exp((self._last_arrival - now) / MEMORY)

    def in_demand(self, waiting: int, now: float) -> bool:
        """Whether it should have a place; `waiting` are queued."""
        return self.in_flight + waiting > 0 or self.rate(now) > SELDOM

    def recent_rate(self, now: float) -> float:
        """The same of a model that may have been asked for since less than some minutes."""
        return self.rate(now) / (1 - math.exp(-max(SHORTEST, now - self._first_arrival) / MEMORY))

    def changed(self, by: int, waiting: int, now: float) -> None:
        """The number of requests in flight has changed; `waiting` are queued."""
        self._average_load = self.average_load(waiting, now)
        self._changed_at = now
        # Less than none: it began when too many others were tracked.
        self.in_flight = max(0, self.in_flight + by)

    def average_load(self, waiting: int, now: float) -> float:
        """Requests in flight and queued, averaged over the last minutes."""
        level = self.in_flight + waiting
        return level + (self._average_load - level) * math.exp((self._changed_at - now) / MEMORY)

    def add(self, agent: Agent, slots: int, *, free: bool) -> None:
        self.slots += slots - self.slots_by_agent.get(agent, 0)
        self.slots_by_agent[agent] = slots
        self.holders.add(agent)
        if free:
            self.free.add(agent)
        else:
            self.free.discard(agent)

    def discard(self, agent: Agent) -> None:
        self.slots -= self.slots_by_agent.pop(agent, 0)
        self.holders.discard(agent)
        self.free.discard(agent)


class Placement:
    def __init__(self) -> None:
        self._models: dict[str, ModelUse] = {}

    def use(self, model: str) -> ModelUse:
        """The use of the model (a canonical name), to be updated."""
        found = self._models.get(model)
        if found is None:
            found = ModelUse()
            if len(self._models) >= MAX_MODELS:
                self._models = {name: use for name, use in self._models.items() if use.slots_by_agent or use.in_flight}
            if len(self._models) < MAX_MODELS:
                self._models[model] = found
        return found

    def in_use(self) -> list[tuple[str, ModelUse]]:
        """The models with requests in flight."""
        return [(model, use) for model, use in self._models.items() if use.in_flight]

    def look(self, model: str) -> ModelUse:
        """The use of the model, to be read only."""
        return self._models.get(model) or ModelUse()

    def update(self, agent: Agent) -> None:
        """The agent's loaded models or its eligibility may have changed."""
        has = agent.models or {}
        served = *agent.loaded_models, *agent.loading, *agent.unlisted.copies, *agent.unlisted.remote
        present = {model for model in served if model in has} if agent.eligible else set()
        for model in agent.placed - present:
            self.use(model).discard(agent)
        for model in present:
            self.use(model).add(agent, agent.slots_for(model), free=model not in agent.full)
        agent.placed = present

    def refit(self, agent: Agent, model: str, slots: int) -> None:
        """The agent's slots for the model, or whether one is free, may have changed."""
        use = self.look(model)
        if agent in use.slots_by_agent:
            use.add(agent, slots, free=model not in agent.full)

    def demand_per_slot(self, model: str, waiting: int, now: float, without: Agent | None = None) -> float:
        """Requests per slot of the model in the fleet, not counting one agent; infinite: no slot is left."""
        use = self.look(model)
        wanted = use.in_flight + waiting
        slots = use.slots - (use.slots_by_agent.get(without, 0) if without is not None else 0)
        if slots <= 0:
            return math.inf if use.in_demand(waiting, now) else 0.0
        return max(wanted, use.average_load(waiting, now)) / slots
