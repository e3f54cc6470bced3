"""The ways to choose an agent: one file a policy, listed in `POLICIES`.

A policy says how it ranks an agent (lower is better; None: not ranked) and chooses from a pool. It keeps no state.
"""

from collections.abc import Collection
from typing import Protocol

from ..agent import Agent
from ..pool import Pool
from .adaptive import Adaptive
from .least_requests import LeastRequests
from .metrics import Metrics
from .roundrobin import RoundRobin


class Policy(Protocol):
    @property
    def name(self) -> str: ...

    def rank(self, agent: Agent) -> int | None:
        """The agent's rank on the pool's scoreboard; None keeps it off."""

    def select(self, pool: Pool, exclude: Collection[Agent]) -> Agent | None:
        """The agent for the next request, or None if all candidates are excluded."""

    def why(self, agent: Agent) -> str:
        """What spoke for the agent, in a few words for the flow's comment."""


POLICIES: dict[str, Policy] = {policy.name: policy for policy in (RoundRobin(), Metrics(), LeastRequests(), Adaptive())}

DEFAULT_POLICY = Adaptive.name
