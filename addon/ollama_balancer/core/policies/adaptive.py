"""Least expected completion time, for this request on each agent: see `forecast`.

Whoever's cheapest choice is busy waits for it, as long as that takes no longer than the best choice that is free. A
load that pushes nothing out is the cheaper, the more requests wait that gain by it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

from ..agent import Agent
from ..decision import Option
from ..demand import Demand
from ..pool import Pool
from ..scoring.agent_estimate import Situation
from ..scoring.scorer import Weighing

LONGEST_PATIENCE = 120.0
"""Seconds after which a request takes any agent that is free.

`--tune adaptive.LONGEST_PATIENCE`: 30 and 10 are far worse, as models then push each other out of memory."""


class Choice(NamedTuple):
    """`agent` None: it is better to wait. `options` are the agent and the two next best, as far as there are any."""

    agent: Agent | None
    options: tuple[Option, ...] = ()
    free: bool = False
    """Where it is better to wait: whether an agent has a slot free all the same."""


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
        weighing = Weighing(pool.candidates, pool.board, exclude, demand, at, ahead)
        best = weighing.cheapest()
        if best is None:
            return None
        if weighing[best].full:
            best = weighing.free(waited if waited < LONGEST_PATIENCE else math.inf)
            if best is None:
                return Choice(None, weighing.options(None), weighing.any_free())
        forecast, options = weighing[best], weighing.options(best)
        pool.candidates.chosen(forecast)
        return Choice(forecast.agent, options)

    def why(self, agent: Agent) -> str:
        return f"{agent.in_flight} in flight"


def in_words(options: tuple[Option, ...]) -> str:
    """Why the first of them, in a few words: what it was expected to cost, and what the next best was."""
    best, *others = options
    rest = f", then {others[0].agent} {others[0].cost:.1f} s" if others else ""
    return f"{'loads it' if best.load > 0 else 'warm'}, cost {best.cost:.1f} s{rest}"
