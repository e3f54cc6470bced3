"""Least expected completion time of the request over all agents: see `scoring.agent_estimate`.

A request whose cheapest agent is busy waits for it as long as that costs no more than the cheapest agent with a free
slot. A load that evicts nothing gets cheaper the more queued requests gain from it.
"""

import math
from collections.abc import Collection
from typing import NamedTuple

from ..agent import Agent
from ..decision import ScoredCandidate
from ..demand import Demand
from ..pool import Pool
from ..scoring.agent_estimate import Situation
from ..scoring.scorer import Scorer

LONGEST_PATIENCE = 120.0
"""Seconds after which a request takes any agent with a free slot.

`--tune adaptive.LONGEST_PATIENCE`: 30 and 10 are far worse, as models then evict each other."""


class Choice(NamedTuple):
    """`agent` None: it is better to wait. `options` are the chosen agent and up to two runners-up."""

    agent: Agent | None
    options: tuple[ScoredCandidate, ...] = ()
    free: bool = False
    """If it is better to wait: whether an agent has a free slot all the same."""


class Adaptive:
    name = "adaptive"

    def rank(self, agent: Agent) -> int | None:
        return agent.in_flight

    def select(self, pool: Pool, exclude: Collection[Agent]) -> Agent | None:
        """Without a demand: fewest requests in flight; ties rotate."""
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
        scorer = Scorer(pool.candidates, pool.board, exclude, demand, at, ahead)
        best = scorer.cheapest()
        if best is None:
            return None
        if scorer[best].full:
            best = scorer.free(waited if waited < LONGEST_PATIENCE else math.inf)
            if best is None:
                return Choice(None, scorer.options(None), scorer.any_free())
        estimate, options = scorer[best], scorer.options(best)
        pool.candidates.move_to_end(estimate)
        return Choice(estimate.agent, options)

    def why(self, agent: Agent) -> str:
        return f"{agent.in_flight} in flight"
