"""The candidates for one model, with their cached estimates."""

from ..agent import Agent
from ..random_set import RandomSet
from .agent_estimate import AgentEstimate

MAX_RUNNERS = 8
"""Sets of runner options for which estimates are cached."""

ALL = 256
"""The largest pool of which every member is scored.

As many as a choice has time for: `pytest benches/test_adaptive.py --benchmark-only` shows what that takes.
`--tune candidates.ALL`: a fleet of 24 does as well where only a sample is scored."""

MAX_ESTIMATES = 2_048
"""Estimates that are cached for a larger pool, for each set of runner options."""


class Candidates:
    """`members` may get requests of the model, though perhaps not now: their slots may all be taken."""

    __slots__ = ("_estimates", "_lists", "members", "model")

    def __init__(self, model: str | None) -> None:
        self.model = model
        self.members: RandomSet[Agent] = RandomSet()
        self._estimates: dict[str, dict[Agent, AgentEstimate]] = {}
        self._lists: dict[str, list[AgentEstimate]] = {}
        """Estimates of all members by runner options, the least recently chosen first."""

    def __len__(self) -> int:
        return len(self.members)

    def add(self, agent: Agent) -> None:
        self.members.add(agent)
        self._lists.clear()

    def discard(self, agent: Agent) -> None:
        self.members.discard(agent)
        self._lists.clear()
        for estimates in self._estimates.values():
            estimates.pop(agent, None)

    def estimates(self, runner: str) -> list[AgentEstimate]:
        """The estimates of all members, full or not, the least recently chosen first."""
        found = self._lists.get(runner)
        if found is None:
            members = sorted(self.members, key=lambda agent: agent.number)
            found = self._lists[runner] = [self.estimate(runner, agent) for agent in members]
        return found

    def estimate(self, runner: str, agent: Agent) -> AgentEstimate:
        """The estimate of one member."""
        cached = self.cached(runner)
        estimate = cached.get(agent)
        if estimate is None:
            if len(cached) >= MAX_ESTIMATES:
                cached.clear()
            estimate = cached[agent] = AgentEstimate(agent, self.model or "", runner)
        return estimate

    def cached(self, runner: str) -> dict[Agent, AgentEstimate]:
        """The cached estimates for those runner options."""
        cached = self._estimates.get(runner)
        if cached is None:
            if len(self._estimates) >= MAX_RUNNERS:
                self._estimates.clear()
                self._lists.clear()
            cached = self._estimates[runner] = {}
        return cached

    def move_to_end(self, estimate: AgentEstimate) -> None:
        """The agent was chosen: others with an equal score come first next time."""
        estimates = self._lists.get(estimate.runner)
        if estimates is not None:
            estimates.remove(estimate)
            estimates.append(estimate)
