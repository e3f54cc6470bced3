"""Binds waiting requests to agents: a request is given an agent when one is free, not before."""

from __future__ import annotations

from collections.abc import Iterable

from .agent import Agent
from .registry import AgentRegistry
from .waiting import Place, WaitingLine


class Matcher:
    """Serves the line whenever an agent has room or changes. Who waits is notified with the lease, already taken."""

    def __init__(self, registry: AgentRegistry, line: WaitingLine) -> None:
        self.registry = registry
        self.line = line
        registry.on_room = self._room
        registry.on_change = self._changed

    def find(self, model: str, tried: Iterable[Agent] = (), only: Agent | None = None) -> Agent | None:
        """The agent for a request of the model now: the mode's choice, else the least bad. None: none has room.

        `only` is the one agent that will do.
        """
        registry = self.registry
        if only is not None:
            return only if only not in tried and registry.has_room(only, model) else None
        exclude = tried if isinstance(tried, list | tuple | frozenset) else tuple(tried)
        return registry.select(model, exclude) or registry.least_bad(model, exclude)

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
            while self.line.first(place) is not None:
                found = self.find(place.model, place.tried, place.agent)
                if found is None:
                    break
                # Out of the line first: taking an agent may change it, which serves the line.
                waiter = self.line.call(place)
                waiter.notify(self.registry.take(found, place.model))
