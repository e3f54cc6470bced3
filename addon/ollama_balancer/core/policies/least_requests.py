"""Fewest requests in flight; ties rotate."""

from collections.abc import Collection

from ..agent import Agent
from ..pool import Pool


class LeastRequests:
    name = "least_requests"

    def rank(self, agent: Agent) -> int | None:
        return agent.in_flight

    def select(self, pool: Pool, exclude: Collection[Agent]) -> Agent | None:
        return pool.board.lowest(exclude)

    def why(self, agent: Agent) -> str:
        return f"{agent.in_flight} in flight"
