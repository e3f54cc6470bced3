"""The pools of each policy: made when a model is first asked for, and kept right as agents change."""

from collections.abc import Callable, Iterable, Mapping

from .agent import Agent
from .policies import POLICIES, Policy
from .pool import Pool

MAX_POOLS = 256
"""Pools (one a model) kept at once for each policy; the one not asked for longest makes room."""

UNKNOWN = ""
"""The key of the pool of agents whose models are not known yet; no canonical model name is empty."""


class Pools:
    """By policy and model; None for the model: any agent will do. The three indexes are the fleet's."""

    def __init__(
        self,
        clock: Callable[[], float],
        agents: Mapping[str, Agent],
        holders: Mapping[str, Mapping[Agent, None]],
        undiscovered: Mapping[Agent, None],
    ) -> None:
        self._clock = clock
        self._agents = agents
        self._holders = holders
        self._undiscovered = undiscovered
        self.by_policy: dict[str, dict[str | None, Pool]] = {name: {} for name in POLICIES}
        """Those that there are, by the policy's name and the model."""

    def get(self, policy: Policy, model: str | None) -> Pool | None:
        """The pool of those candidates, made if need be; None for a model that nobody has."""
        pools = self.by_policy[policy.name]
        pool = pools.get(model)
        if pool is not None:
            return pool
        if model is not None and model != UNKNOWN and model not in self._holders:
            return None
        if len(pools) >= MAX_POOLS:
            oldest = min(pools, key=lambda key: pools[key].used)
            pools.pop(oldest).clear()
        pool = pools[model] = Pool(policy.name, policy.rank, model)
        pool.used = self._clock()
        members: Iterable[Agent]
        if model is None:
            members = self._agents.values()
        else:
            members = self._undiscovered if model == UNKNOWN else self._holders[model]
        for agent in members:
            if belongs(agent, model):
                pool.add(agent)
        return pool

    def clear(self) -> None:
        for pools in self.by_policy.values():
            for pool in pools.values():
                pool.clear()
            pools.clear()

    def place(self, agent: Agent) -> None:
        """Put the agent into the pools where it belongs and out of the others."""
        for pools in self.by_policy.values():
            for model, pool in pools.items():
                if belongs(agent, model):
                    pool.add(agent)
                else:
                    pool.discard(agent)

    def slots_changed(self, agent: Agent, model: str, *, full: bool) -> None:
        """The agent has no slot of the model free any more, or has one again."""
        for pools in self.by_policy.values():
            if (pool := pools.get(model)) is not None:
                (pool.fill if full else pool.free)(agent)


def belongs(agent: Agent, model: str | None) -> bool:
    """Whether the agent is a candidate for the model now, if it has a slot free."""
    if not agent.eligible:
        return False
    if model is None:
        return True
    if model == UNKNOWN:
        return agent.models is None
    return agent.models is not None and model in agent.models
