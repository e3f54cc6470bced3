"""Lowest score: cpu_usage + memory_usage + active_requests * 10.

Agents without fresh metrics come last. If every candidate with fresh metrics has a CPU over 80 %, or none has fresh
metrics, the score says nothing and the candidates get their turn.
"""

from collections.abc import Collection

from ..agent import ACTIVE_REQUEST_RANK, Agent
from ..pool import Pool


class Metrics:
    name = "metrics"

    def rank(self, agent: Agent) -> int | None:
        # The agent's score in thousandths. Written out: this runs twice a request for each pool the agent is in.
        if not agent.fresh:
            return None
        active, reported = agent.in_flight, agent.reported_active
        return agent.base_rank + (reported if reported > active else active) * ACTIVE_REQUEST_RANK

    def select(self, pool: Pool, exclude: Collection[Agent]) -> Agent | None:
        if pool.has_cool(exclude) if exclude else pool.cool:
            return pool.board.lowest(exclude)
        return pool.next_in_turn(exclude)

    def why(self, agent: Agent) -> str:
        if not agent.fresh:
            return "round robin: no fresh metrics"
        score = f"score {agent.score:g}"
        return f"round robin: CPU over 80 %, {score}" if agent.hot else score
