"""Each candidate in turn."""

from collections.abc import Collection

from ..agent import Agent
from ..pool import Pool


class RoundRobin:
    name = "roundrobin"

    def rank(self, agent: Agent) -> int | None:
        return None

    def select(self, pool: Pool, exclude: Collection[Agent]) -> Agent | None:
        return pool.next_in_turn(exclude)

    def why(self, agent: Agent) -> str:
        return "next in turn"
