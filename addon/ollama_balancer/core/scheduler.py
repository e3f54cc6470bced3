"""Assigns queued requests to agents. A request is bound to an agent when the agent has a free slot, not before."""

from collections.abc import Callable, Collection, Iterable, Iterator

from .agent import Agent
from .demand import Demand
from .health import Phase
from .leases import Lease
from .policies.adaptive import Choice
from .priority import Priority
from .queue import RequestQueue
from .registry import AgentRegistry
from .tickets import FairnessKey, QueueKey, Ticket

HEADS = 8
"""Tickets of a queue key that are considered for a free slot.

A bound on the work of a turn. `--tune scheduler.HEADS`: flat from 1 to 32."""

MAX_OVERTAKEN = 8
"""How many tickets with prefix-cache affinity may overtake a ticket.

A bound on unfairness. `--tune scheduler.MAX_OVERTAKEN`: flat from 0 to 32."""


class Scheduler:
    """Serves the queue whenever a slot becomes free or an agent changes. A ticket is notified with its lease."""

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
        """The agent for a request now: the policy's choice, else the least bad one. None: the request has to wait.

        `only` is the agent that the request is pinned to; `ahead` the number of requests before it, by default all
        that wait for the model.
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
        priority: Priority = Priority.NORMAL,
    ) -> Ticket:
        """Queue a request. QueueFullError: the queue has reached its size, and nobody of a lower class waits."""
        prefix = self.registry.learner.prefix_cache.find(demand) if demand is not None else None
        affinity = prefix.agent if prefix is not None else None
        return self.queue.join(key, client, notify, demand, affinity, fairness_key, priority)

    def is_hopeless(self, key: QueueKey) -> bool:
        """Whether no agent is left for the key: all that could serve it are offline or draining."""
        if key.agent is not None:
            return not key.agent.available or not key.agent.may_have(key.model)
        return not self.registry.selection.could_serve(key.model, key.tried)

    def _slot_free(self, agent: Agent, model: str) -> None:
        if len(self.queue) and agent.available:
            # Any model: an ejected agent, or one in slow start, takes one request after the other, whatever the model.
            self._serve(self.queue.active_keys(None if agent.health.is_limited else model), agent)

    def _changed(self, agent: Agent) -> None:
        if not len(self.queue):
            return
        keys = [key for key in self.queue.active_keys() if agent.may_have(key.model)]
        if agent.available:
            self._serve(keys, agent)
        else:
            # The agents that are left may all be ejected: then one of them gets a half-open probe.
            self._serve(keys)
        self._give_up()

    def _give_up(self) -> None:
        """Notify the tickets that no agent can serve any more."""
        for key in self.queue.active_keys():
            if self.is_hopeless(key):
                for ticket in self.queue.tickets(key):
                    self.queue.leave(ticket)
                    ticket.notify(None)

    def _serve(self, keys: Iterable[QueueKey], agent: Agent | None = None) -> None:
        """Assign tickets for as long as agents have free slots; keys come in the order given.

        While several classes wait, the order is determined anew after each ticket, as the next one of the same key may
        be of a lower class than another key's.
        """
        waiting = [key for key in keys if agent is None or (agent not in key.tried and key.agent in (None, agent))]
        while waiting:
            if not self._serve_one(waiting[0]):
                del waiting[0]
            elif len(waiting) > 1 and self.queue.is_mixed:
                waiting = self.queue.in_order(waiting)

    def _serve_one(self, key: QueueKey) -> bool:
        """Assign one of the key's next tickets, if an agent suits it; whether to try again."""
        if key.agent is None and self.registry.selection.all_busy(key.model):
            return False
        ahead = self.queue.count(key.model) - 1
        refused: set[tuple[str, str, bool, Agent | None]] = set()
        for ticket in self._next_tickets(key):
            demand = ticket.demand
            preference = demand.runner, demand.route, demand.needs_whole, ticket.affinity
            if preference in refused:
                continue  # an older ticket with the same preference found no agent
            refused.add(preference)
            waited = self.registry.clock() - ticket.since
            choice = self.find(ticket.demand, key.tried, key.agent, ahead=ahead, waited=waited)
            found = choice.agent
            if not ticket.waiting:
                return True  # the search has changed an agent, which has served the queue
            if found is None:
                if not choice.free:
                    return False
                continue  # a free agent that does not suit this ticket may suit the next one
            if choice.options and self._has_to_load(found, key.model):
                # The newest client is the likeliest to wait for the load, which is aborted if its request is.
                newest = self.queue.last(key, ticket.priority)
                ticket = newest if self.queue.may_go_early(newest) else ticket
            elif choice.options and key.agent is None:
                ticket, choice = self._prefer_affinity(ticket, choice, ahead)
            if not ticket.waiting or not self._may_get(found, key.model):
                # The search for affinity may have changed either one. The next look serves who is left.
                return False
            # Leave the queue first: taking a lease may change the agent, which serves the queue.
            self.queue.call(key, ticket)
            ticket.notify(self.registry.limiter.take(found, key.model, ticket.demand, choice.options))
            return True
        return False

    def _next_tickets(self, key: QueueKey) -> Iterator[Ticket]:
        """The first ticket, which mostly is the only one needed; then the next ones, the first among them."""
        first = self.queue.first(key)
        if first is not None:
            yield first
            yield from self.queue.next_tickets(key, HEADS)

    def _may_get(self, agent: Agent, model: str) -> bool:
        """Whether the agent may still take a request of the model, if only as a half-open probe."""
        half_open = agent.health.phase is Phase.EJECTED and agent.available and agent.half_open_lease is None
        return half_open or self.registry.selection.has_free_slot(agent, model)

    def _has_to_load(self, agent: Agent, model: str) -> bool:
        return agent.memory_known and not agent.holds(model)

    def _prefer_affinity(self, first: Ticket, choice: Choice, ahead: int) -> tuple[Ticket, Choice]:
        """The ticket that gets the agent chosen for the first one: one whose prefix is cached there may overtake it.

        Its prompt need not be prefilled again, which saves time for all that wait behind it.
        """
        agent, key, queue = choice.agent, first.key, self.queue
        assert agent is not None
        while first.overtaken < MAX_OVERTAKEN:
            other = queue.oldest_with_affinity(key, agent, first.priority)
            if other is None or other is first or not queue.may_go_early(other):
                break
            prefix = self.registry.learner.prefix_cache.find(other.demand)
            if prefix is None or prefix.agent is not agent:
                queue.drop_affinity(other)
                continue
            theirs = self.find(other.demand, key.tried, ahead=ahead, waited=self.registry.clock() - other.since)
            if theirs.agent is not agent or not other.waiting or not first.waiting:
                break
            first.overtaken += 1
            return other, theirs
        return first, choice

    def look(self) -> None:
        """Serve the queue after time has passed: a ticket that preferred to wait may by now be better off elsewhere."""
        if len(self.queue):
            self._serve(self.queue.active_keys())
            self._give_up()
