"""Binds waiting requests to agents: a request is given an agent when one is free, not before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from .agent import Agent
from .demand import Demand
from .health import Phase
from .leases import Lease
from .policies.adaptive import Choice
from .queue import FairnessKey, QueueKey, RequestQueue, Ticket
from .registry import AgentRegistry

HEADS = 8
"""Of those that wait at a place, how many are asked whether they would have a free agent."""

MOST_OVERTAKEN = 8
"""How often one that waits lets another go before it whose conversation the free agent has read."""


class Scheduler:
    """Serves the line whenever an agent has room or changes. Who waits is notified with the lease, already taken."""

    def __init__(self, registry: AgentRegistry, queue: RequestQueue) -> None:
        self.registry = registry
        self.queue = queue
        registry.fleet.waiting = queue.count
        registry.fleet.on_slot_free = self._slot_free
        registry.fleet.on_change = self._changed

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
            return Choice(only if only not in tried and registry.selection.has_free_slot(only, model) else None)
        exclude: Collection[Agent] = tried if isinstance(tried, list | tuple | frozenset) else tuple(tried)
        avoided = registry.avoidance.for_demand(demand)
        if avoided and registry.selection.serves_soon(model, others := {*exclude, *avoided}):
            exclude = others
        if ahead is None:
            ahead = self.queue.count(model)
        choice = registry.selection.choose(demand, exclude, ahead=ahead, waited=waited)
        if choice.agent is None:
            agent = registry.selection.least_bad(model, exclude)
            if agent is not None:
                return Choice(agent)
        return choice

    def join(
        self,
        key: QueueKey,
        client: str,
        notify: Callable[[Lease | None], None],
        demand: Demand | None = None,
        fairness_key: FairnessKey | None = None,
    ) -> Ticket:
        """Have a request wait. LineFullError: as many wait as may."""
        affinity = self.registry.learner.prefix_cache.find(demand.prefixes)[0] if demand is not None else None
        return self.queue.join(key, client, notify, demand, affinity, fairness_key)

    def is_hopeless(self, key: QueueKey) -> bool:
        """Whether nobody who waits there can be served any more: all agents that could are offline or draining."""
        if key.agent is not None:
            return not key.agent.available or not key.agent.may_have(key.model)
        return not self.registry.selection.could_serve(key.model, key.tried)

    def _slot_free(self, agent: Agent, model: str) -> None:
        if len(self.queue) and agent.available:
            # Of another model, too: an ejected or returning agent gets one after the other, whichever they are.
            self._serve(self.queue.active_keys(None if agent.health.is_limited else model), agent)

    def _changed(self, agent: Agent) -> None:
        if not len(self.queue):
            return
        keys = [key for key in self.queue.active_keys() if agent.may_have(key.model)]
        if agent.available:
            self._serve(keys, agent)
        else:
            # Those that are left may all be ejected: then one of them is to be tried.
            self._serve(keys)
        self._give_up()

    def _give_up(self) -> None:
        """Have nobody wait for what nobody can serve any more."""
        for key in self.queue.active_keys():
            if self.is_hopeless(key):
                for ticket in self.queue.tickets(key):
                    self.queue.leave(ticket)
                    ticket.notify(None)

    def _serve(self, keys: Iterable[QueueKey], agent: Agent | None = None) -> None:
        """Give turns as long as there are agents; the place whose first has waited longest comes first."""
        for key in keys:
            if agent is not None and (agent in key.tried or (key.agent is not None and key.agent is not agent)):
                continue
            while self._serve_one(key):
                pass

    def _serve_one(self, key: QueueKey) -> bool:
        """Give a turn there, if there is an agent for one of the first in the line; whether to try once more."""
        if key.agent is None and self.registry.selection.all_busy(key.model):
            return False
        ahead = self.queue.count(key.model) - 1
        refused: set[tuple[str, str, Agent | None]] = set()
        for ticket in self._next_tickets(key):
            preference = ticket.demand.runner, ticket.demand.route, ticket.affinity
            if preference in refused:
                continue  # who has waited longer did not want what there is
            refused.add(preference)
            waited = self.registry.clock() - ticket.since
            choice = self.find(ticket.demand, key.tried, key.agent, ahead=ahead, waited=waited)
            found = choice.agent
            if not ticket.waiting:
                return True  # to look for an agent may have changed one, which serves the line
            if found is None:
                if not choice.free:
                    return False
                continue  # what this one does not want may be what the next one does
            if choice.options and self._has_to_load(found, key.model):
                # Who has come last is likeliest to stay until then, and a load is given up with its request.
                ticket = self.queue.last(key)
            elif choice.options and key.agent is None:
                ticket, choice = self._prefer_affinity(ticket, choice, ahead)
            if not ticket.waiting or not self._may_get(found, key.model):
                # To look for who is at home there may have changed either. The next look serves who is left.
                return False
            # Out of the line first: taking an agent may change it, which serves the line.
            self.queue.call(key, ticket)
            ticket.notify(self.registry.limiter.take(found, key.model, ticket.demand, choice.options))
            return True
        return False

    def _next_tickets(self, key: QueueKey) -> Iterator[Ticket]:
        """The first in the line, who is mostly the only one to be asked; then the others, and he among them."""
        first = self.queue.first(key)
        if first is not None:
            yield first
            yield from self.queue.next_tickets(key, HEADS)

    def _may_get(self, agent: Agent, model: str) -> bool:
        """Whether the agent may still get a request of the model: also an ejected one, to try it."""
        half_open = agent.health.phase is Phase.EJECTED and agent.available and agent.half_open_lease is None
        return half_open or self.registry.selection.has_free_slot(agent, model)

    def _has_to_load(self, agent: Agent, model: str) -> bool:
        return agent.memory_known and not agent.holds(model)

    def _prefer_affinity(self, first: Ticket, choice: Choice, ahead: int) -> tuple[Ticket, Choice]:
        """Who gets the agent that the first in the line is to get: another, whose conversation is there, may go before.

        Its prompt need not be read anew, by which all that wait behind gain.
        """
        agent, key, queue = choice.agent, first.key, self.queue
        assert agent is not None
        while first.overtaken < MOST_OVERTAKEN and (other := queue.oldest_with_affinity(key, agent)) not in (
            None,
            first,
        ):
            assert other is not None
            affinity, _ = self.registry.learner.prefix_cache.find(other.demand.prefixes)
            if affinity is not agent:
                queue.drop_affinity(other)
                continue
            theirs = self.find(other.demand, key.tried, ahead=ahead, waited=self.registry.clock() - other.since)
            if theirs.agent is not agent or not other.waiting or not first.waiting:
                break
            first.overtaken += 1
            return other, theirs
        return first, choice

    def look(self) -> None:
        """Time has gone by: who waits for one agent may do better with another by now."""
        if len(self.queue):
            self._serve(self.queue.active_keys())
            self._give_up()
