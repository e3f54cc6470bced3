"""Has models loaded in place of others where those that are loaded cannot serve what is asked for.

Requests alone do not bring that about. Each weighs what its load would cost others, one host at a time, and evicts no
model that is in demand; though that may be the only one on a host that could serve ten times as much as is asked of it.
So now and then all places are looked at together.
"""

import math
from collections.abc import Callable, Iterator, Set

from .agent import Agent
from .fleet import Fleet
from .health import Phase
from .limiter import ConcurrencyLimiter
from .scoring.placement_plan import Capacity, Load, plan

LOOK, IN_VAIN = 5.0, 15.0
"""Seconds between two looks, and after one that has found no help: that costs more."""

UNSERVED = 0.05
"""The part of what is asked for that the present places cannot serve, above which others are looked for.

`--tune rebalancing.UNSERVED`: flat from 0.02 to 0.2, worse where other places are never looked for."""

LEFT = 0.5
"""What may be left of it: where most of it cannot be served anyhow, little is gained by loads.

`--tune rebalancing.LEFT`: flat from 0.3 to 0.8."""

HOLD = 60.0
"""Seconds for which a plan holds: what is not carried out by then is given up.

`--tune rebalancing.HOLD`: flat from 40 to 120."""

SETTLED = 30.0
"""Seconds after which a plan is pushed: until then a model is not unloaded while it is to be loaded elsewhere, though
it has other places, and no agent is kept from requests to become idle.
"""

DRAIN = 5.0
"""Seconds for which an agent is kept from requests to become idle, again with each look at the plan."""

QUEUE_SECONDS = 60.0
"""Seconds within which those that wait now are to be served, in the reckoning of what is asked for."""

AGENTS, MODELS, LOADED = 32, 16, 8
"""The largest fleet for which it is done, the models that are looked at, and how many an agent may have loaded to load
another: a bound on its work.
"""

type MayLoad = Callable[[Agent, str], bool]
"""Whether the agent may be asked to load the model."""


class Rebalancing:
    def __init__(self, fleet: Fleet, limiter: ConcurrencyLimiter) -> None:
        self._fleet = fleet
        self._limiter = limiter
        self._loads: list[Load] = []
        """Of the plan."""
        self._leaving: set[tuple[Agent, str]] = set()
        """What is being unloaded, or drained for that."""
        self._planned_at = self._next_look = -math.inf

    def due(self, now: float, may_load: MayLoad) -> Iterator[Load]:
        """Loads of the plan that would take nothing from anybody now. The first one is taken to begin."""
        if now >= self._next_look:
            self._leaving = set()
            self._loads, is_enough = self._plan(now, may_load)
            self._planned_at = now
            self._next_look = now + (HOLD if self._loads else LOOK if is_enough else IN_VAIN)
        for load in self._loads:
            agent, model, instead = load
            if not _is_ready(agent) or agent.loading or agent.holds(model) or not may_load(agent, model):
                continue
            if agent.has_room(model, now):
                yield load._replace(instead=None)
            elif instead in agent.loaded_models and self._is_spare(agent, instead, now):
                if instead not in agent.running:
                    self._leaving.add((agent, instead))
                    yield load
                elif now - self._planned_at > SETTLED and not any(each.agent.holds(each.model) for each in self._loads):
                    self._leaving.add((agent, instead))
                    self._limiter.busy(agent, instead, DRAIN)

    def failed(self, load: Load) -> None:
        """A load has failed. What is left of the plan, if it was a part of that, may not help any more."""
        if any((each.agent, each.model) == (load.agent, load.model) for each in self._loads):
            self._loads = []
            self._leaving = set()
            self._next_look = self._fleet.clock() + IN_VAIN

    def _is_spare(self, agent: Agent, model: str, now: float) -> bool:
        """Whether the agent may unload the model: nobody needs it, or it has other places."""
        fleet, look = self._fleet, self._fleet.learner.placement.look
        for copy in agent.unlisted.copies_of(model):
            if copy in agent.running or look(copy).in_demand(fleet.waiting(copy), now):
                return False
        has_others = any(
            model in other.loaded_models and other.eligible and (other, model) not in self._leaving
            for other in fleet.agents.values()
            if other is not agent
        )
        if look(model).in_demand(fleet.waiting(model), now) and not has_others:
            return False
        if all(model in each.agent.loaded_models for each in self._loads if each.model == model):
            return True
        return has_others and now - self._planned_at > SETTLED

    def _plan(self, now: float, may_load: MayLoad) -> tuple[list[Load], bool]:
        """The loads, and whether the present places are good enough."""
        if len(self._fleet.agents) > AGENTS:
            return [], True
        demand = self._demand(now)
        agents = self._agents(demand)
        if not agents:
            return [], True
        places = {agent: _places(agent) for agent in agents}
        allowed = {
            agent: {
                model
                for model in demand
                if _is_ready(agent) and len(places[agent]) <= LOADED and may_load(agent, model)
            }
            for agent in agents
        }
        found = plan(
            places,
            demand,
            self._capacity(agents, demand),
            lambda agent, models, model: model in allowed[agent] and agent.could_hold(models, model, now),
            tolerated=UNSERVED,
        )
        helps = found.left <= LEFT * found.unserved
        return found.loads if helps else [], found.unserved <= UNSERVED

    def _demand(self, now: float) -> dict[str, float]:
        """Requests per second by model, of those asked for most; none while nobody waits."""
        look, waiting = self._fleet.learner.placement.look, self._fleet.waiting
        queued = {model: count for model in self._fleet.holders if (count := waiting(model))}
        if not queued:
            return {}
        demand = {}
        for model in self._fleet.holders:
            use, count = look(model), queued.get(model, 0)
            if use.in_demand(count, now) and not all(
                agent.unlisted.serves(model, "") for agent in self._fleet.holders[model]
            ):
                demand[model] = use.recent_rate(now) + count / QUEUE_SECONDS
        most = sorted(demand, key=lambda model: -demand[model])[:MODELS]
        return {model: demand[model] for model in most}

    def _agents(self, demand: dict[str, float]) -> list[Agent]:
        """Those that have a model that is asked for, the least busy first."""
        agents = [
            agent
            for agent in self._fleet.agents.values()
            if agent.eligible and not demand.keys().isdisjoint(agent.models or ())
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


def _places(agent: Agent) -> Set[str]:
    """The models that it has loaded; all of its models where it does not tell."""
    return agent.loaded_models.keys() | agent.loading.keys() if agent.memory_known else (agent.models or {}).keys()


def _is_ready(agent: Agent) -> bool:
    """Whether it may be part of a plan; what others serve counts all the same."""
    return agent.eligible and agent.memory_known and agent.health.phase is Phase.HEALTHY
