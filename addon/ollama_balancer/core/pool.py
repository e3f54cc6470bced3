"""The candidates for one model under one policy, indexed so that the policy's choice costs constant time."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from .agent import Agent
from .random_set import DrawingSet
from .scoreboard import Scoreboard
from .scoring.agent_estimate import Forecast

if TYPE_CHECKING:
    from .policies import Policy

MAX_RUNNERS = 8
"""Sets of runner options for which forecasts are kept."""

ALL = 256
"""Members up to which all are forecast, in the order of their turn: as many as a choice has time for.

`pytest benches/test_adaptive.py --benchmark-only` shows what that takes. `--tune pool.ALL`: a fleet of 24 does
as well where only a sample is weighed."""

MAX_FORECASTS = 2_048
"""Forecasts that are kept of a larger pool, for each set of runner options."""


class Pool:
    """Eligible agents that have a model, with the order the policy ranks them in.

    `board` holds those that the policy ranks and that have a slot free, `cool` those of them whose CPU is at or under
    80 %.
    """

    __slots__ = (
        "_forecasts",
        "_full",
        "_lists",
        "_ring",
        "board",
        "cool",
        "index",
        "members",
        "model",
        "policy",
        "used",
    )

    def __init__(self, policy: Policy, model: str | None = None) -> None:
        self.policy = policy
        self.model = model
        self.board: Scoreboard[Agent] = Scoreboard(policy.rank)
        self.cool: set[Agent] = set()
        self.index = 0
        self.used = 0.0
        """When it was last asked for, on the registry's clock."""
        self.members: DrawingSet[Agent] = DrawingSet()
        self._full: set[Agent] = set()
        """Members that run as many requests of the model as they can."""
        self._ring: list[Agent] | None = None
        self._forecasts: dict[str, dict[Agent, Forecast]] = {}
        self._lists: dict[str, list[Forecast]] = {}
        """The same by runner options, in the order of their turn."""

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        return f"Pool({self.policy.name}, {len(self.members)} candidates, {self.board!r}, {len(self.cool)} cool)"

    def add(self, agent: Agent) -> None:
        if agent not in self.members:
            self.members.add(agent)
            agent.pools.append(self)
            if self.model in agent.full:
                self._full.add(agent)
            else:
                agent.boards.append(self.board)
            self._ring = None
            self._lists.clear()
        self.changed(agent)

    def discard(self, agent: Agent) -> None:
        if agent in self.members:
            self.fill(agent)
            self.members.discard(agent)
            self._full.remove(agent)
            agent.pools.remove(self)
            self._ring = None
            self._lists.clear()
            for forecasts in self._forecasts.values():
                forecasts.pop(agent, None)

    def fill(self, agent: Agent) -> None:
        """It has no slot free, and is not chosen until it has."""
        if agent in self.members and agent not in self._full:
            self._full.add(agent)
            agent.boards.remove(self.board)
            self.board.remove(agent)
            self.cool.discard(agent)

    def free(self, agent: Agent) -> None:
        """It has a slot free again."""
        if agent in self._full:
            self._full.remove(agent)
            agent.boards.append(self.board)
            self.changed(agent)

    @property
    def all_full(self) -> bool:
        """Whether there are members, and each runs as many requests of the model as it can."""
        return 0 < len(self.members) == len(self._full)

    def clear(self) -> None:
        for agent in list(self.members):
            self.discard(agent)

    def changed(self, agent: Agent) -> None:
        """The agent's metrics are others, or no longer fresh."""
        if agent in self._full:
            return
        if self.board.update(agent) and not agent.hot:
            self.cool.add(agent)
        else:
            self.cool.discard(agent)

    def has_cool(self, exclude: Collection[Agent]) -> bool:
        """Whether one of those that may be chosen has a CPU at or under 80 %."""
        return len(self.cool) > len(exclude) or any(agent not in exclude for agent in self.cool)

    def forecasts(self, runner: str) -> list[Forecast]:
        """What a request with those runner options is to expect of each member, full or not; they rotate."""
        found = self._lists.get(runner)
        if found is None:
            members = sorted(self.members, key=lambda agent: agent.number)
            found = self._lists[runner] = [self.forecast(runner, agent) for agent in members]
        return found

    def forecast(self, runner: str, agent: Agent) -> Forecast:
        """That of one member."""
        kept = self.kept(runner)
        forecast = kept.get(agent)
        if forecast is None:
            if len(kept) >= MAX_FORECASTS:
                kept.clear()
            forecast = kept[agent] = Forecast(agent, self.model or "", runner)
        return forecast

    def kept(self, runner: str) -> dict[Agent, Forecast]:
        """The forecasts that were made before."""
        kept = self._forecasts.get(runner)
        if kept is None:
            if len(self._forecasts) >= MAX_RUNNERS:
                self._forecasts.clear()
                self._lists.clear()
            kept = self._forecasts[runner] = {}
        return kept

    def chosen(self, forecast: Forecast) -> None:
        """Its equals come before it the next time."""
        forecasts = self._lists.get(forecast.runner)
        if forecasts is not None:
            forecasts.remove(forecast)
            forecasts.append(forecast)

    def next_in_turn(self, exclude: Collection[Agent]) -> Agent | None:
        """Round robin: `index % len(candidates)`, in the order of registration, without the full and the excluded."""
        full = self._full
        if len(full) == len(self.members):
            return None
        ring = self._ring
        if ring is None:
            ring = self._ring = sorted(self.members, key=lambda agent: agent.number)
        for _ in range(len(ring)):
            agent = ring[self.index % len(ring)]
            self.index += 1
            if agent not in exclude and agent not in full:
                return agent
        return None
