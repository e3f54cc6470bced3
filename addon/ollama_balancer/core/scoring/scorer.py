"""The agents as one request weighs them, the cheapest first.

What the eviction of a model costs depends on what all of the fleet is asked for, and is looked into only where an agent
would be among the cheapest without it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from ..agent import Agent
from ..decision import Option
from ..demand import Demand
from ..scoreboard import Scoreboard
from .agent_estimate import Forecast, Situation
from .candidates import ALL, Candidates

SAMPLE = 4
"""Of more agents than `ALL`: those that have the model in memory, and as many others.

`--tune scorer.SAMPLE`: flat from 1 to 8 in a fleet of 24."""

OTHERS = 2
"""The next best that the record of a decision names: shown, and no part of the choice."""

LOOKS = 4
"""Evictions that are looked into to find them."""


class Weighing:
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
        "_evictions",
        "_exclude",
        "_forecasts",
        "_gain",
        "_known",
        "_last",
        "_queue",
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
        self._last, self._known = at.learner.conversations.find(demand.steps) if demand.steps else (None, 0)
        if self._known > demand.tokens:
            # The prompt is longer than its context: its beginning has been dropped.
            self._last, self._known = None, 0
        self._forecasts: list[Forecast] = []
        self._costs: list[float] = []
        """Of each, without the eviction until that is looked into; infinite for one that is excluded."""
        self._evictions: dict[int, float] = {}
        self._queue = 0.0
        """Seconds until those ahead have had their turn."""
        if len(candidates) <= ALL:
            self._weigh(candidates.forecasts(demand.runner), 1.0)
        else:
            self._sample()

    def __getitem__(self, number: int) -> Forecast:
        return self._forecasts[number]

    def cheapest(self) -> int | None:
        return self._cheapest(self._costs)

    def free(self, patience: float = math.inf) -> int | None:
        """The cheapest that has a slot free.

        None: there is none, or to use it takes longer than `patience` seconds. An agent that has the model in memory
        and runs no other is taken all the same: to leave its slots free would gain nothing.
        """
        pairs = zip(self._forecasts, self._costs)  # noqa: B905 (they are as long as each other)
        return self._cheapest([math.inf if f.full else cost for f, cost in pairs], patience)

    def _cheapest(self, costs: list[float], within: float = math.inf) -> int | None:
        while True:
            cost = min(costs, default=math.inf)
            if cost == math.inf:
                return None
            number = costs.index(cost)
            if cost > within and not self._forecasts[number].sole:
                costs[number] = math.inf
                continue
            if not self._forecasts[number].evicts or number in self._evictions:
                return number
            costs[number] = self._look_into(number)

    def any_free(self) -> bool:
        """Whether one has a slot free, whatever it costs."""
        pairs = zip(self._forecasts, self._costs, strict=True)
        return any(not forecast.full and cost < math.inf for forecast, cost in pairs)

    def options(self, first: int | None) -> tuple[Option, ...]:
        """That one, and the next best; or simply the best."""
        found = [] if first is None else [first]
        costs, forecasts = self._costs.copy(), self._forecasts
        if first is not None:
            costs[first] = math.inf
        looks = 0
        while len(found) <= OTHERS:
            cost = min(costs)
            if cost == math.inf:
                break
            number = costs.index(cost)
            if forecasts[number].evicts and number not in self._evictions:
                if looks == LOOKS:
                    break
                looks += 1
                costs[number] = self._look_into(number)
                continue
            found.append(number)
            costs[number] = math.inf
        return tuple([self._option(forecasts[number], self._evictions.get(number, 0.0)) for number in found])

    def _option(self, forecast: Forecast, eviction: float) -> Option:
        unread = self._demand.tokens
        if forecast.agent is self._last and not forecast.cold:
            unread -= self._known
        return forecast.option(unread, self._queue, self._gain, eviction)

    def _look_into(self, number: int) -> float:
        """What it costs with the eviction."""
        eviction = self._evictions[number] = self._forecasts[number].eviction(self._at)
        self._costs[number] += eviction
        return self._costs[number]

    def _weigh(self, forecasts: list[Forecast], part: float) -> None:
        """Take these in, too; `part` is how much of the agents that have the model in memory are among them."""
        at, tokens = self._at, self._demand.tokens
        generation = at.learner.estimates.generation(self._demand.model)
        costs = []
        for forecast in forecasts:
            if forecast.epoch != forecast.agent.epoch or forecast.generation != generation:
                forecast.refresh(at)
            costs.append(forecast.fixed + forecast.per_token * tokens)
        if self._ahead:
            if not self._forecasts:
                pace = sum(1 / f.wait for f in forecasts if f.full and not f.cold)
                self._queue = self._ahead * part / pace if pace else 0.0
            for number, forecast in enumerate(forecasts):
                costs[number] += (self._queue if forecast.full else 0.0) - forecast.shared * self._gain
        last = self._last
        if last is not None and last in self._candidates.members:
            forecast = self._candidates.forecast(self._demand.runner, last)
            if not forecast.cold and forecast in forecasts:
                costs[forecasts.index(forecast)] -= forecast.per_token * self._known
        if self._exclude:
            for number, forecast in enumerate(forecasts):
                if forecast.agent in self._exclude:
                    costs[number] = math.inf
        self._forecasts = self._forecasts + forecasts if self._forecasts else forecasts
        self._costs += costs

    def _sample(self) -> None:
        """Who read the beginning of the prompt, some that have the model in memory, and if need be others.

        Others have to load it: who finds one that has it and a slot free has no use for them.
        """
        candidates, chance = self._candidates, self._at.chance
        use = self._at.learner.placement.look(self._demand.model)
        drawn = (use.free or use.holders).draw(chance, SAMPLE)
        part = len(drawn) / len(use.holders) if drawn and self._ahead else 1.0
        last = self._last
        if last is not None and last in candidates.members:
            drawn[last] = None
        self._weigh(self._of(drawn), part)
        for forecast in self._forecasts:
            if not forecast.full and not forecast.cold and forecast.agent not in self._exclude:
                return
        others = candidates.members.draw(chance, SAMPLE)
        lowest = self._board.lowest(self._exclude)
        if lowest is not None:
            others[lowest] = None
        self._weigh(self._of(others.keys() - drawn.keys()), part)

    def _of(self, agents: Iterable[Agent]) -> list[Forecast]:
        candidates, runner = self._candidates, self._demand.runner
        kept = candidates.kept(runner)
        return [kept.get(agent) or candidates.forecast(runner, agent) for agent in agents]
