"""Binds waiting requests to agents: a request is given an agent when one is free, not before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from .agent import Agent
from .demand import Demand
from .health import Phase
from .leases import Lease
from .policies.adaptive import Choice
from .queue import Place, Share, Waiter, WaitingLine
from .registry import AgentRegistry

HEADS = 8
"""Of those that wait at a place, how many are asked whether they would have a free agent.

A bound on the work of a turn. `--tune scheduler.HEADS`: flat from 1 to 32."""

MOST_OVERTAKEN = 8
"""How often one that waits lets another go before it whose conversation the free agent has read.

A bound on unfairness. `--tune scheduler.MOST_OVERTAKEN`: flat from 0 to 32."""


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
        exclude: Collection[Agent] = tried if isinstance(tried, list | tuple | frozenset) else tuple(tried)
        avoided = registry.avoidance.for_demand(demand)
        if avoided and registry.serves_soon(model, others := {*exclude, *avoided}):
            exclude = others
        if ahead is None:
            ahead = self.line.count(model)
        choice = registry.choose(demand, exclude, ahead=ahead, waited=waited)
        if choice.agent is None:
            agent = registry.least_bad(model, exclude)
            if agent is not None:
                return Choice(agent)
        return choice

    def join(
        self,
        place: Place,
        client: str,
        notify: Callable[[Lease | None], None],
        demand: Demand | None = None,
        share: Share | None = None,
    ) -> Waiter:
        """Have a request wait. LineFullError: as many wait as may."""
        home = self.registry.learner.conversations.find(demand.steps)[0] if demand is not None else None
        return self.line.join(place, client, notify, demand, home, share)

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
        self._give_up()

    def _give_up(self) -> None:
        """Have nobody wait for what nobody can serve any more."""
        for place in self.line.places():
            if self.hopeless(place):
                for waiter in self.line.waiters(place):
                    self.line.leave(waiter)
                    waiter.notify(None)

    def _serve(self, places: Iterable[Place], agent: Agent | None = None) -> None:
        """Give turns as long as there are agents; the place whose first has waited longest comes first."""
        for place in places:
            if agent is not None and (agent in place.tried or (place.agent is not None and place.agent is not agent)):
                continue
            while self._serve_one(place):
                pass

    def _serve_one(self, place: Place) -> bool:
        """Give a turn there, if there is an agent for one of the first in the line; whether to try once more."""
        if place.agent is None and self.registry.all_busy(place.model):
            return False
        ahead = self.line.count(place.model) - 1
        asked: set[tuple[str, str, Agent | None]] = set()
        for waiter in self._heads(place):
            wish = waiter.demand.runner, waiter.demand.route, waiter.home
            if wish in asked:
                continue  # who has waited longer did not want what there is
            asked.add(wish)
            waited = self.registry.clock() - waiter.since
            choice = self.find(waiter.demand, place.tried, place.agent, ahead=ahead, waited=waited)
            found = choice.agent
            if not waiter.waiting:
                return True  # to look for an agent may have changed one, which serves the line
            if found is None:
                if not choice.free:
                    return False
                continue  # what this one does not want may be what the next one does
            if choice.options and self._has_to_load(found, place.model):
                # Who has come last is likeliest to stay until then, and a load is given up with its request.
                waiter = self.line.last(place)
            elif choice.options and place.agent is None:
                waiter, choice = self._at_home(waiter, choice, ahead)
            if not waiter.waiting or not self._may_get(found, place.model):
                # To look for who is at home there may have changed either. The next look serves who is left.
                return False
            # Out of the line first: taking an agent may change it, which serves the line.
            self.line.call(place, waiter)
            waiter.notify(self.registry.take(found, place.model, waiter.demand, choice.options))
            return True
        return False

    def _heads(self, place: Place) -> Iterator[Waiter]:
        """The first in the line, who is mostly the only one to be asked; then the others, and he among them."""
        first = self.line.first(place)
        if first is not None:
            yield first
            yield from self.line.heads(place, HEADS)

    def _may_get(self, agent: Agent, model: str) -> bool:
        """Whether the agent may still get a request of the model: also an ejected one, to try it."""
        trial = agent.health.phase is Phase.EJECTED and agent.available and agent.trial is None
        return trial or self.registry.has_room(agent, model)

    def _has_to_load(self, agent: Agent, model: str) -> bool:
        return agent.memory_known and not agent.holds(model)

    def _at_home(self, first: Waiter, choice: Choice, ahead: int) -> tuple[Waiter, Choice]:
        """Who gets the agent that the first in the line is to get: another, whose conversation is there, may go before.

        Its prompt need not be read anew, by which all that wait behind gain.
        """
        agent, place, line = choice.agent, first.place, self.line
        assert agent is not None
        while first.overtaken < MOST_OVERTAKEN and (other := line.at_home(place, agent)) not in (None, first):
            assert other is not None
            home, _ = self.registry.learner.conversations.find(other.demand.steps)
            if home is not agent:
                line.forget_home(other)
                continue
            theirs = self.find(other.demand, place.tried, ahead=ahead, waited=self.registry.clock() - other.since)
            if theirs.agent is not agent or not other.waiting or not first.waiting:
                break
            first.overtaken += 1
            return other, theirs
        return first, choice

    def look(self) -> None:
        """Time has gone by: who waits for one agent may do better with another by now."""
        if len(self.line):
            self._serve(self.line.places())
            self._give_up()
