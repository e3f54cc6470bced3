"""Least expected completion time, for this request on each agent: see `forecast`.

Whoever's cheapest choice is busy waits for it, as long as that takes no longer than the best choice that is free. A
load that pushes nothing out is the cheaper, the more requests wait that gain by it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..agent import Agent
from ..demand import Demand
from ..forecast import Forecast, Option, Situation

if TYPE_CHECKING:
    from ..pool import Pool

ALL = 256
"""Candidates up to which all are looked at; of more, a sample."""

SAMPLE = 4
"""Of agents that have the model in memory, and as many others."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`agent` None: it is better to wait. `options` are the best that there were, up to three."""

    agent: Agent | None
    options: tuple[Option, ...] = ()


class Adaptive:
    name = "adaptive"

    def rank(self, agent: Agent) -> int | None:
        return agent.in_flight

    def select(self, pool: Pool, exclude: Collection[Agent]) -> Agent | None:
        """Without knowing what is asked: the fewest requests in flight; ties rotate."""
        return pool.board.lowest(exclude)

    def choose(
        self,
        pool: Pool,
        exclude: Collection[Agent],
        demand: Demand,
        at: Situation,
        *,
        ahead: int = 0,
        waited: float = 0.0,
    ) -> Choice | None:
        """The agent for a request that has waited so many seconds, with so many ahead of it. None: no candidate."""
        last, known = at.learner.conversations.find(demand.steps)
        forecasts = pool.forecasts(demand.runner)
        if len(forecasts) > ALL:
            forecasts = self._sample(pool, demand, at, last)
        for forecast in forecasts:
            if forecast.epoch != forecast.agent.epoch:
                forecast.refresh(at)
        queue = 0.0
        if ahead:
            pace = sum(1 / f.wait for f in forecasts if f.full and not f.cold)
            queue = ahead / pace if pace else 0.0
        tokens, gain = demand.tokens, ahead / (ahead + 1)
        costs: list[tuple[float, int]] = []
        for number, f in enumerate(forecasts):
            if exclude and f.agent in exclude:
                continue
            unread = tokens - known if f.agent is last and not f.cold else tokens
            cost = f.fixed + f.per_token * unread - f.shared * gain
            costs.append((cost + queue if f.full else cost, number))
        if not costs:
            return None
        costs.sort()
        options = tuple(
            forecasts[number].option(cost, tokens - known if forecasts[number].agent is last else tokens)
            for cost, number in costs[:3]
        )
        cost, number = costs[0]
        if forecasts[number].full:
            cost, number = next(((c, n) for c, n in costs if not forecasts[n].full), (0.0, -1))
            if number < 0 or (waited < cost and not _unshared(forecasts[number])):
                return Choice(None, options)
        forecast = forecasts[number]
        pool.chosen(forecast)
        return Choice(forecast.agent, options)

    def _sample(self, pool: Pool, demand: Demand, at: Situation, last: Agent | None) -> list[Forecast]:
        """Who read the beginning of the prompt, some that have the model in memory, some others, and the idlest."""
        found: dict[Agent, Forecast] = {}

        def add(agent: Agent | None) -> None:
            if agent is not None and agent not in found:
                forecast = pool.forecast(demand.runner, agent)
                if forecast is not None:
                    found[agent] = forecast

        add(last)
        holders = at.learner.placement.use(demand.model).holders
        everybody = pool.forecasts(demand.runner)
        for _ in range(SAMPLE):
            if holders:
                add(holders[int(at.chance() * len(holders)) % len(holders)])
            add(everybody[int(at.chance() * len(everybody)) % len(everybody)].agent)
        add(pool.board.lowest())
        return list(found.values())

    def why(self, agent: Agent) -> str:
        return f"{agent.in_flight} in flight"


def _unshared(forecast: Forecast) -> bool:
    """Whether the agent has the model in memory and runs no other: to leave its slots free would gain nothing."""
    return not forecast.cold and all(model == forecast.model for model in forecast.agent.running)


def in_words(options: tuple[Option, ...]) -> str:
    """Why the first of them, in a line: what it was expected to take, and what the next best was."""
    best, *others = options
    parts = [
        f"{name} {seconds:.1f}"
        for name, seconds in (
            ("wait", best.wait),
            ("load", best.load),
            ("prompt", best.prefill),
            ("answer", best.answer),
            ("others", best.harm),
        )
        if seconds >= 0.05
    ]
    terms = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    rest = f", then {others[0].agent} {others[0].cost:.1f} s" if others else ""
    return f"{best.cost:.1f} s expected{terms}{rest}"
