"""The agents that may serve one model, with what was computed for each of them before."""

from __future__ import annotations

from ..agent import Agent
from ..random_set import DrawingSet
from .agent_estimate import Forecast

MAX_RUNNERS = 8
"""Sets of runner options for which forecasts are kept."""

ALL = 256
"""Members up to which all are forecast, in the order of their turn: as many as a choice has time for.

`pytest benches/test_adaptive.py --benchmark-only` shows what that takes. `--tune candidates.ALL`: a fleet of 24 does as
well where only a sample is weighed."""

MAX_FORECASTS = 2_048
"""Forecasts that are kept of a larger pool, for each set of runner options."""


class Candidates:
    """`members` may get requests of the model, if perhaps not now: all their slots may be taken."""

    __slots__ = ("_forecasts", "_lists", "members", "model")

    def __init__(self, model: str | None) -> None:
        self.model = model
        self.members: DrawingSet[Agent] = DrawingSet()
        self._forecasts: dict[str, dict[Agent, Forecast]] = {}
        self._lists: dict[str, list[Forecast]] = {}
        """The same by runner options, in the order of their turn."""

    def __len__(self) -> int:
        return len(self.members)

    def add(self, agent: Agent) -> None:
        self.members.add(agent)
        self._lists.clear()

    def discard(self, agent: Agent) -> None:
        self.members.discard(agent)
        self._lists.clear()
        for forecasts in self._forecasts.values():
            forecasts.pop(agent, None)

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
