"""Binds waiting requests to agents: a request is given an agent when one is free, not before."""

from __future__ import annotations

from collections.abc import Iterable

from .agent import Agent
from .demand import Demand
from .policies.adaptive import Choice
from .registry import AgentRegistry
from .waiting import Place, WaitingLine


class Matcher:
    """Serves the line whenever an agent has room or changes. Who waits is notified with the lease, already taken."""

    def __init__(self, registry: AgentRegistry, line: WaitingLine) -> None:
        self.registry = registry
        self.line = line
        registry.waiting = line.count
        registry.on_room = self._room
        registry.on_change = self._changed

    def find(
        self,
        demand: Demand,
        tried: Iterable[Agent] = (),
        only: Agent | None = None,
        *,
        ahead: int | None = None,
        waited: float = 0.0,
    ) -> Choice:
        """The agent for a request now: the mode's choice, else the least bad. None: it is to wait.

        `only` is the one agent that will do; `ahead` how many wait before it: all that wait, unless given.
        """
        registry, model = self.registry, demand.model
        if only is not None:
            return Choice(only if only not in tried and registry.has_room(only, model) else None)
        exclude = tried if isinstance(tried, list | tuple | frozenset) else tuple(tried)
        if ahead is None:
            ahead = self.line.count(model)
        choice = registry.choose(demand, exclude, ahead=ahead, waited=waited)
        if choice.agent is None:
            agent = registry.least_bad(model, exclude)
            if agent is not None:
                return Choice(agent)
        return choice

    def hopeless(self, place: Place) -> bool:
        """Whether nobody who waits there can be served any more: all agents that could are offline or draining."""
        if place.agent is not None:
            return not place.agent.available or not place.agent.may_have(place.model)
        return not self.registry.could_serve(place.model, place.tried)

    def _room(self, agent: Agent, model: str) -> None:
        if len(self.line) and agent.available:
            # Of another model, too: an ejected or returning agent gets one after the other, whichever they are.
            self._serve(self.line.places(None if agent.health.limits else model), agent)

    def _changed(self, agent: Agent) -> None:
        if not len(self.line):
            return
        places = [place for place in self.line.places() if agent.may_have(place.model)]
        if agent.available:
            self._serve(places, agent)
        else:
            # Those that are left may all be ejected: then one of them is to be tried.
            self._serve(places)
        for place in places:
            if self.hopeless(place):
                for waiter in self.line.waiters(place):
                    self.line.leave(waiter)
                    waiter.notify(None)

    def _serve(self, places: Iterable[Place], agent: Agent | None = None) -> None:
        """Give turns as long as there are agents; the place whose first has waited longest comes first."""
        for place in places:
            if agent is not None and (agent in place.tried or (place.agent is not None and place.agent is not agent)):
                continue
            while (waiter := self.line.first(place)) is not None:
                waited = self.registry.clock() - waiter.since
                ahead = self.line.count(place.model) - 1
                choice = self.find(waiter.demand, place.tried, place.agent, ahead=ahead, waited=waited)
                found = choice.agent
                if found is None:
                    break
                if self.line.first(place) is not waiter:
                    continue  # to look for an agent may have changed one, which serves the line
                # Out of the line first: taking an agent may change it, which serves the line.
                if choice.options and not found.holds(place.model):
                    # To load takes longer than to wait for the next turn: that is for who has come last.
                    waiter = self.line.last(place)
                    self.line.leave(waiter)
                else:
                    waiter = self.line.call(place)
                waiter.notify(self.registry.take(found, place.model, waiter.demand, choice.options))

    def look(self) -> None:
        """Time has gone by: who waits for one agent may do better with another by now."""
        if len(self.line):
            self._serve(self.line.places())
