"""Has a model that is much asked for loaded on one more agent, before a request has to wait for that load.

An agent is chosen that has the model and room for it beside what it has loaded: nothing is evicted. A request that
caused the load would wait for all of it, and would abort it by leaving; a load on the balancer's own account costs
nobody anything but memory.
"""

import math
from collections.abc import Collection, Iterator
from enum import Enum
from itertools import islice

from .agent import Agent
from .fleet import Fleet
from .health import Phase
from .limiter import ConcurrencyLimiter
from .policies.adaptive import Adaptive
from .random_set import RandomSet
from .rebalancing import Rebalancing
from .scoring.learning import SHORTEST_LOAD
from .scoring.placement_plan import Load
from .selection import Selection

DEMAND = 1.0
"""Requests per slot of a model, running and waiting, from which it is loaded on one more agent.

`--tune preloading.DEMAND`: 0.5 is as good, 2 is worse, and so is never to do it."""

PAUSE = 600.0
"""Seconds from the end of a load until the agent is asked for the model again: it may refuse or never end it, or not
keep what it loads."""

REFUSALS = 3
"""Agents that have not loaded a model, in the last `PAUSE` seconds, after which no other is asked: the model is the
cause, as with those for embeddings, for which Ollama refuses such a request."""

AT_ONCE = 4
"""Loads in progress in the whole fleet: a bound on what a sudden demand sets off."""

UNLOAD_TIMEOUT = 10.0
"""Seconds within which an agent has to confirm that it unloads a model, to which no requests are sent meanwhile."""

MODELS, AGENTS = 8, 64
"""Models, and of each as many agents, that are looked at in one turn: a bound on its work."""


class Ending(Enum):
    LOADED = "loaded"
    FAILED = "failed"
    NOT_ASKED = "not asked"
    """The agent did not unload the model in whose place it was to load."""


class Preloading:
    """Decides which load is due. Who carries it out says when it has `ended`."""

    def __init__(self, fleet: Fleet, limiter: ConcurrencyLimiter, selection: Selection) -> None:
        self._fleet = fleet
        self._limiter = limiter
        self._selection = selection
        self._rebalancing = Rebalancing(fleet, limiter)
        self.on = True
        self._began: dict[tuple[Agent, str], float] = {}
        """The loads in progress, and since when."""
        self._ended: dict[tuple[Agent, str], tuple[float, Ending]] = {}
        """When and how loads ended, of the last `PAUSE` seconds."""

    def due(self) -> Load | None:
        """The load that is to begin now, of a model (a canonical name); its agent counts as loading it from here on.

        None: no load is due, or the mode goes by other things than what is loaded.
        """
        now = self._fleet.clock()
        if not self.on or not isinstance(self._selection.policy, Adaptive) or len(self._began) >= AT_ONCE:
            return None
        self._ended = {pair: (at, how) for pair, (at, how) in self._ended.items() if now - at < PAUSE}
        for model, holders in islice(self._wanted(now), MODELS):
            agent = self._best(model, now) if self._may_load(model, self._some(holders)) else None
            if agent is not None:
                return self._begin(Load(agent, model), now)
        load = next(self._rebalancing.due(now, self._may_load_there), None)
        return None if load is None else self._begin(load, now)

    def _may_load_there(self, agent: Agent, model: str) -> bool:
        """Whether the agent has the model and may be asked for it, which it may have loaded before and been made to
        unload, and the model may be loaded here.
        """
        holders = self._fleet.learner.placement.look(model).holders
        may_ask = self._may_ask(agent, model, again=True)
        return may_ask and model in (agent.models or ()) and self._is_loadable(model, holders)

    def _begin(self, load: Load, now: float) -> Load:
        self._began[load.agent, load.model] = now
        if load.instead is not None:
            self._limiter.busy(load.agent, load.instead, UNLOAD_TIMEOUT)
        self._limiter.load_began(load.agent, load.model)
        return load

    def ended(self, load: Load, how: Ending) -> None:
        """It is over."""
        agent, model, _ = load
        now, loaded = self._fleet.clock(), how is Ending.LOADED
        self._ended[agent, model] = now, how
        seconds = now - self._began.pop((agent, model))
        if loaded and seconds >= SHORTEST_LOAD and not agent.removed:
            estimates = self._fleet.learner.estimates
            estimates.changed(model, estimates.load.observe(agent.id, model, seconds))
        self._limiter.load_ended(agent, model, loaded=loaded)
        if not loaded:
            self._rebalancing.failed(load)

    def _wanted(self, now: float) -> Iterator[tuple[str, RandomSet[Agent]]]:
        """Models whose slots do not suffice, and who has them loaded."""
        placement = self._fleet.learner.placement
        models = placement.in_use()
        first = int(self._fleet.chance() * len(models))
        for model, use in models[first:] + models[:first]:
            waiting = self._fleet.waiting(model)
            if not use.slots or use.in_flight + waiting < DEMAND * use.slots:
                continue
            if DEMAND <= placement.demand_per_slot(model, waiting, now) < math.inf:
                yield model, use.holders

    def _some(self, agents: RandomSet[Agent]) -> Collection[Agent]:
        """Them all, or of many some."""
        return agents if len(agents) <= AGENTS else agents.draw(self._fleet.chance, AGENTS)

    def _may_load(self, model: str, holders: Collection[Agent]) -> bool:
        """Whether nobody is loading the model, and it may be loaded here."""
        if any(loading == model and agent.eligible for agent, loading in self._began):
            return False
        return not any(model in agent.loading for agent in holders) and self._is_loadable(model, holders)

    def _is_loadable(self, model: str, holders: Collection[Agent]) -> bool:
        """Whether several agents have not refused to load the model, and requests do not have it loaded with options,
        which are not known here, as far as answers of those holders have shown.
        """
        if sum(other == model and how is Ending.FAILED for (_, other), (_, how) in self._ended.items()) >= REFUSALS:
            return False
        runners = {agent.loaded_models[model].runner for agent in holders if model in agent.loaded_models}
        return runners - {None} == {""}

    def _best(self, model: str, now: float) -> Agent | None:
        """The fastest of those that have the model and room for it, in a large fleet of some."""
        estimates, pool = self._fleet.learner.estimates, self._fleet.pools.get(self._selection.policy, model)
        if pool is None:
            return None
        best, most = None, 0.0
        for agent in self._some(pool.candidates.members):
            if not agent.eligible or agent.health.phase is not Phase.HEALTHY or not agent.memory_known:
                continue
            if agent.loading or model in agent.running or model in agent.loaded_models:
                continue
            if not self._may_ask(agent, model) or not agent.has_room(model, now):
                continue
            power = estimates.decode.value(agent.id, model) * agent.slots_for(model) / (1 + len(agent.running))
            if power > most:
                best, most = agent, power
        return best

    def _may_ask(self, agent: Agent, model: str, *, again: bool = False) -> bool:
        """Whether it has not been asked for that load of late, or `again` may be as it was carried out."""
        if (agent, model) in self._began or agent.unlisted.serves(model, ""):
            return False
        ended = self._ended.get((agent, model))
        return ended is None or (again and ended[1] is Ending.LOADED)
