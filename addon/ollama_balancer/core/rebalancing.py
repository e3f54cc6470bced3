"""Has models loaded in place of others where those that are loaded cannot serve what is asked for.

Requests alone do not bring that about. Each weighs what its load would cost others, one host at a time, and evicts no
model that is in demand; though that may be the only one on a host that could serve ten times as much as is asked of it.
So now and then all places are looked at together.
"""

import math
from collections.abc import Iterator

from .agent import Agent
from .fleet import Fleet
from .health import Phase
from .limiter import ConcurrencyLimiter
from .scoring.placement_plan import Capacity, Load, plan

LOOK = 5.0
"""Seconds between two looks."""

UNSERVED = 0.05
"""The part of what is asked for that the present places cannot serve, above which others are looked for.

`--tune rebalancing.UNSERVED`"""

LEFT, MOST_LEFT = 0.5, 0.1
"""What may be left of it, in parts of it and of all: where much cannot be served anyhow, little is gained by loads.

`--tune rebalancing.LEFT`"""

HOLD = 60.0
"""Seconds for which a plan holds: what is not carried out by then is given up.

`--tune rebalancing.HOLD`"""

SETTLED = 30.0
"""Seconds after which a plan is pushed: until then a model is not unloaded while it is to be loaded elsewhere, though
it has other places, and no agent is kept from requests to become idle.
"""

QUEUE_SECONDS = 60.0
"""Seconds within which those that wait now are to be served, in the reckoning of what is asked for."""

AGENTS, MODELS = 64, 32
"""The largest fleet for which it is done, and the models that are looked at: a bound on its work."""


class Rebalancing:
    def __init__(self, fleet: Fleet, limiter: ConcurrencyLimiter) -> None:
        self._fleet = fleet
        self._limiter = limiter
        self._loads: list[Load] = []
        """Of the plan."""
        self._drained: set[tuple[Agent, str]] = set()
        """Agents that get no more requests of a model, which they are to unload."""
        self._planned_at = self._next_look = -math.inf

    def due(self, now: float) -> Iterator[Load]:
        """Loads of the plan that would take nothing from anybody now."""
        if now >= self._next_look:
            self._loads = self._plan(now)
            self._planned_at = now
            self._drained = set()
            self._next_look = now + (HOLD if self._loads else LOOK)
        for load in self._loads:
            agent = load.agent
            if not _is_ready(agent) or agent.loading or load.model in agent.loaded_models:
                continue
            if agent.has_room(load.model, now):
                yield load._replace(instead=None)
            elif load.instead in agent.loaded_models and self._is_spare(load, now):
                if load.instead not in agent.running:
                    yield load
                elif now - self._planned_at > SETTLED and not any(each.agent.holds(each.model) for each in self._loads):
                    self._drain(agent, load.instead, now)

    def _drain(self, agent: Agent, model: str, now: float) -> None:
        """The agent gets no more requests of the model while the plan holds."""
        if (agent, model) not in self._drained:
            self._drained.add((agent, model))
            self._limiter.busy(agent, model, self._planned_at + HOLD - now)

    def _is_spare(self, load: Load, now: float) -> bool:
        """Whether the model that is to be unloaded has its other places."""
        model = load.instead
        if all(model in each.agent.loaded_models for each in self._loads if each.model == model):
            return True
        return self._copies(model) > 1 and now - self._planned_at > SETTLED

    def _copies(self, model: str | None) -> int:
        return sum(model in agent.loaded_models for agent in self._fleet.agents.values() if agent.eligible)

    def _plan(self, now: float) -> list[Load]:
        demand = self._demand(now)
        agents = self._agents(demand)
        if not agents:
            return []
        places = {agent: agent.loaded_models.keys() | agent.loading.keys() for agent in agents}
        found = plan(
            places,
            demand,
            self._capacity(agents, demand),
            lambda agent, models, model: agent.could_hold(models, model, now),
            tolerated=UNSERVED,
        )
        return found.loads if found.left <= min(MOST_LEFT, LEFT * found.unserved) else []

    def _demand(self, now: float) -> dict[str, float]:
        """Requests per second by model, of those asked for most; none while nobody waits."""
        look, waiting = self._fleet.learner.placement.look, self._fleet.waiting
        queued = {model: count for model in self._fleet.holders if (count := waiting(model))}
        if not queued:
            return {}
        demand = {}
        for model in self._fleet.holders:
            use, count = look(model), queued.get(model, 0)
            if use.in_demand(count, now):
                demand[model] = use.recent_rate(now) + count / QUEUE_SECONDS
        most = sorted(demand, key=lambda model: -demand[model])[:MODELS]
        return {model: demand[model] for model in most}

    def _agents(self, demand: dict[str, float]) -> list[Agent]:
        """Those whose memory is known and that have a model that is asked for, the least busy first; none if they are
        too many.
        """
        if not demand or len(self._fleet.agents) > AGENTS:
            return []
        agents = [
            agent
            for agent in self._fleet.agents.values()
            if _is_ready(agent) and not demand.keys().isdisjoint(agent.models or ())
        ]
        return sorted(agents, key=lambda agent: agent.in_flight)

    def _capacity(self, agents: list[Agent], demand: dict[str, float]) -> Capacity:
        estimates = self._fleet.learner.estimates

        def served(agent: Agent, model: str) -> float:
            return agent.gain_of_slots(model) * estimates.decode.value(agent.id, model) / estimates.output(model)

        return {
            agent: {model: served(agent, model) for model in demand.keys() & (agent.models or {}).keys()}
            for agent in agents
        }


def _is_ready(agent: Agent) -> bool:
    return agent.eligible and agent.memory_known and agent.health.phase is Phase.HEALTHY
