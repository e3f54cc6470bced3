"""Scores the candidates for one request: the lowest expected cost wins.

The cost of an eviction depends on the demand for other models across the fleet, and is computed only for agents that
would be among the cheapest without it.
"""

import math
from collections.abc import Collection, Iterable

from ..agent import Agent
from ..decision import ScoredCandidate
from ..demand import Demand
from ..scoreboard import Scoreboard
from .agent_estimate import AgentEstimate, Situation, answer_weight
from .candidates import ALL, Candidates

SAMPLE = 4
"""Agents that are drawn from a pool larger than `ALL`: so many with the model loaded, and so many others.

With 320 agents, 24 models and 70 % load, the first token comes 0.17 s later with 2 and 0.11 s sooner with 8, of 0.6."""

WHOLE = 32
"""Agents with the model loaded of which no sample is drawn: all are scored.

With 320 agents, 24 models and 70 % load, the first token comes 0.10 s sooner. With 64 it would be 0.16 s, at a cost
above what a choice among 1,000 agents is to have."""

OTHERS = 2
"""Runners-up in the record of a decision: shown, and no part of the choice."""

LOOKS = 4
"""Evictions that are computed to find them."""


class Scorer:
    """`board` has those with a slot free; `ahead` requests wait before this one.

    Agents are numbered in the order of their turn.
    """

    __slots__ = (
        "_ahead",
        "_at",
        "_board",
        "_candidates",
        "_costs",
        "_demand",
        "_estimates",
        "_evictions",
        "_exclude",
        "_gain",
        "_prefix",
        "_queue",
        "_weight",
    )

    def __init__(
        self,
        candidates: Candidates,
        board: Scoreboard[Agent],
        exclude: Collection[Agent],
        demand: Demand,
        at: Situation,
        ahead: int,
    ) -> None:
        self._candidates = candidates
        self._board = board
        self._exclude = exclude
        self._demand = demand
        self._at = at
        self._ahead = ahead
        self._gain = ahead / (ahead + 1)
        self._weight = answer_weight(demand)
        self._prefix = at.learner.prefix_cache.find(demand) if demand.prefixes else None
        self._estimates: list[AgentEstimate] = []
        self._costs: list[float] = []
        """By candidate, without the cost of eviction until that is computed; infinite: excluded."""
        self._evictions: dict[int, float] = {}
        self._queue = 0.0
        """Seconds until the requests ahead are served."""
        if len(candidates.members) <= ALL:
            self._score(candidates.estimates(demand.runner), 1.0)
        else:
            self._sample()

    def __getitem__(self, number: int) -> AgentEstimate:
        return self._estimates[number]

    def cheapest(self) -> int | None:
        return self._cheapest(self._costs)

    def free(self, patience: float = math.inf) -> int | None:
        """The cheapest candidate with a free slot.

        None: there is none, or it costs more than `patience` seconds. An agent that has the model loaded and runs no
        other is taken anyway: leaving its slots idle would gain nothing.
        """
        pairs = zip(self._estimates, self._costs)  # noqa: B905 (they are as long as each other)
        return self._cheapest([math.inf if f.full else cost for f, cost in pairs], patience)

    def _cheapest(self, costs: list[float], within: float = math.inf) -> int | None:
        while True:
            cost = min(costs, default=math.inf)
            if cost == math.inf:
                return None
            number = costs.index(cost)
            if cost > within and not self._estimates[number].sole:
                costs[number] = math.inf
                continue
            if not self._estimates[number].evicts or number in self._evictions:
                return number
            costs[number] = self._look_into(number)

    def any_free(self) -> bool:
        """Whether any candidate has a free slot, whatever it costs."""
        pairs = zip(self._estimates, self._costs, strict=True)
        return any(not estimate.full and cost < math.inf for estimate, cost in pairs)

    def options(self, first: int | None) -> tuple[ScoredCandidate, ...]:
        """The given candidate and the runners-up; without one, the best."""
        found = [] if first is None else [first]
        costs, estimates = self._costs.copy(), self._estimates
        if first is not None:
            costs[first] = math.inf
        looks = 0
        while len(found) <= OTHERS:
            cost = min(costs)
            if cost == math.inf:
                break
            number = costs.index(cost)
            if estimates[number].evicts and number not in self._evictions:
                if looks == LOOKS:
                    break
                looks += 1
                costs[number] = self._look_into(number)
                continue
            found.append(number)
            costs[number] = math.inf
        return tuple([self._option(estimates[number], self._evictions.get(number, 0.0)) for number in found])

    def _option(self, estimate: AgentEstimate, eviction: float) -> ScoredCandidate:
        prefix = self._prefix
        if prefix is None or prefix.agent is not estimate.agent or estimate.cold:
            cached, continued = 0, False
        else:
            cached, continued = prefix.tokens, prefix.gives_way
        unread = self._demand.tokens - cached
        return estimate.option(unread, self._weight, self._queue, self._gain, eviction, cached, continued=continued)

    def _look_into(self, number: int) -> float:
        """The cost including the eviction."""
        eviction = self._evictions[number] = self._estimates[number].eviction(self._at)
        self._costs[number] += eviction
        return self._costs[number]

    def _score(self, estimates: list[AgentEstimate], part: float) -> None:
        """Add candidates; `part` is the share of all agents with the model loaded that is among them."""
        at, tokens, weight = self._at, self._demand.tokens, self._weight
        generation = at.learner.estimates.generation(self._demand.model)
        costs = []
        for estimate in estimates:
            if estimate.epoch != estimate.agent.epoch or estimate.generation != generation:
                estimate.refresh(at)
            elif estimate.until <= at.now:
                estimate.refresh_displacement(at)
            costs.append(estimate.fixed + weight * estimate.writes + estimate.per_token * tokens)
        if self._ahead:
            if not self._estimates:
                pace = sum(1 / f.wait for f in estimates if f.full and not f.cold)
                self._queue = self._ahead * part / pace if pace else 0.0
            for number, estimate in enumerate(estimates):
                costs[number] += (self._queue if estimate.full else 0.0) - estimate.shared * self._gain
        prefix = self._prefix
        if prefix is not None and prefix.agent in self._candidates.members:
            estimate = self._candidates.estimate(self._demand.runner, prefix.agent)
            if not estimate.cold and estimate in estimates:
                saved = estimate.per_token * prefix.tokens + (estimate.displacement if prefix.gives_way else 0.0)
                costs[estimates.index(estimate)] -= saved
        if self._exclude:
            for number, estimate in enumerate(estimates):
                if estimate.agent in self._exclude:
                    costs[number] = math.inf
        self._estimates = self._estimates + estimates if self._estimates else estimates
        self._costs += costs

    def _sample(self) -> None:
        """Score the agent with the prefix cached, some with the model loaded, and if need be some others.

        The others would have to load the model: they are skipped if an agent with the model has a free slot.
        """
        candidates, chance = self._candidates, self._at.chance
        use = self._at.learner.placement.look(self._demand.model)
        ready = use.free or use.holders
        drawn = dict.fromkeys(ready) if len(ready) <= WHOLE else ready.draw(chance, SAMPLE)
        part = len(drawn) / len(use.holders) if drawn and self._ahead else 1.0
        prefix = self._prefix
        if prefix is not None and prefix.agent in candidates.members:
            drawn[prefix.agent] = None
        self._score(self._of(drawn), part)
        for estimate in self._estimates:
            if not estimate.full and not estimate.cold and estimate.agent not in self._exclude:
                return
        others = candidates.members.draw(chance, SAMPLE)
        lowest = self._board.lowest(self._exclude)
        if lowest is not None:
            others[lowest] = None
        self._score(self._of(others.keys() - drawn.keys()), part)

    def _of(self, agents: Iterable[Agent]) -> list[AgentEstimate]:
        candidates, runner = self._candidates, self._demand.runner
        cached = candidates.cached(runner)
        return [cached.get(agent) or candidates.estimate(runner, agent) for agent in agents]
