"""Limits the requests that run on each agent: leases take a slot for their model here, and give it back."""

import math
from collections.abc import Callable

from .agent import Agent
from .agent_records import MAX_LOADED, LoadedModel, Outcome
from .concurrency import SlotLearner
from .decision import Decision, ScoredCandidate
from .demand import Demand
from .ejection import Ejection
from .fleet import Fleet
from .health import Phase
from .leases import SUCCEEDED, Lease, SlotLease
from .observations import AnswerObservation

MAX_LEARNERS = 1000
"""Models whose slots are learned per agent."""


class ConcurrencyLimiter:
    """`slots` is the requests that an agent may run at once per model; 0: what its report says, else learned."""

    def __init__(self, fleet: Fleet, ejection: Ejection, slots: int) -> None:
        self._fleet = fleet
        self._ejection = ejection
        self.slots = slots
        self._busy: dict[tuple[Agent, str], float] = {}
        """Until when an agent accepts no requests of a model."""
        self._overlaps: dict[SlotLearner, tuple[Agent, str]] = {}
        """Learners with an overlap that has yet to last."""
        self._unanswered: dict[tuple[Agent, str], set[SlotLease]] = {}
        """Of the requests in flight, those whose answer has not begun."""
        self.on_contact: Callable[[Agent], None] = lambda agent: None
        """Called when an answer comes from an agent that was unreachable or silent."""

    def take(
        self,
        agent: Agent,
        model: str | None = None,
        demand: Demand | None = None,
        options: tuple[ScoredCandidate, ...] = (),
    ) -> Lease:
        """Count a request in flight on the agent, from now on; with a model (a canonical name), in a slot of it.

        `options` are the scored candidates, for the record.
        """
        agent.in_flight += 1
        for board in agent.boards:
            board.update(agent)
        if model is None:
            return Lease(agent)
        lease = SlotLease(agent, self, demand or Demand(model), self._fleet.clock(), options)
        if options:
            agent.decision = Decision(lease.taken_at, model, options)
        self._take_slot(lease, agent, model)
        return lease

    def forget(self, agent: Agent) -> None:
        """The agent has left."""
        for key in [key for key in self._busy if key[0] is agent]:
            del self._busy[key]

    def busy(self, agent: Agent, model: str, seconds: float) -> None:
        """The agent accepts no requests of the model (a canonical name) for so long: they wait, or go elsewhere."""
        if agent.removed:
            return
        until = self._fleet.clock() + seconds
        self._busy[agent, model] = max(until, self._busy.get((agent, model), until))
        self._fleet.expire_by(until)
        agent.epoch += 1
        self._refit(agent, model)

    def answered(self, lease: Lease, answer: AnswerObservation) -> None:
        """The answer of a request, which still holds its lease, is complete: learn from it."""
        if isinstance(lease, SlotLease) and not lease.agent.removed:
            self._fleet.learner.answered(lease, answer, self._fleet.clock())
            lease.agent.epoch += 1

    def fix_slots(self, agent: Agent) -> None:
        """Apply a change of the slots that are configured or reported."""
        configured = self.slots if agent.own_slots is None else agent.own_slots
        fixed = configured or (agent.metrics.num_parallel if agent.metrics else None) or 0
        if fixed == agent.fixed_slots:
            return
        agent.fixed_slots = fixed
        self._fleet.memory_changed(agent)
        for model in list(agent.running):
            self._refit(agent, model)
            self._fleet.on_slot_free(agent, model)

    def start_over(self, agent: Agent) -> None:
        """The agent went offline, or is another one now: forget what was learned of its slots."""
        agent.learners = {}
        agent.kept_prompts.clear()
        for model in agent.running.keys() | agent.placed:
            self._refit(agent, model)

    def answer_began(self, lease: SlotLease) -> None:
        """The first byte of its answer is there."""
        fleet, agent, model = self._fleet, lease.agent, lease.model
        if not agent.reachable or agent.silent_since is not None:
            self.on_contact(agent)
        lease.began_at = fleet.clock()
        agent.answering[model] = agent.answering.get(model, 0) + 1
        self._unanswered[agent, model].discard(lease)
        loaded = False
        if lease.loading:
            self._loads_no_more(lease)
            loaded = self._load_is_over(agent, model)
        loaded_model = agent.loaded_models.get(model)
        if loaded_model is None:
            if not agent.memory_known and len(agent.loaded_models) >= MAX_LOADED:
                # Nothing tells what it has evicted, and clients choose the names.
                agent.loaded_models.pop(next(iter(agent.loaded_models))).gone = True
            loaded_model = LoadedModel(lease.demand.runner, lease.began_at)
            if not agent.unlisted.serves(model, lease.demand.runner):
                agent.loaded_models[model] = loaded_model
                fleet.memory_changed(agent)
        else:
            if loaded_model.runner not in (None, lease.demand.runner):
                # It was reloaded, and its prefix cache is empty.
                loaded_model.gone = True
                loaded_model = agent.loaded_models[model] = LoadedModel()
            loaded_model.runner, loaded_model.proven_at = lease.demand.runner, lease.began_at
        if lease.demand.tokens and not agent.removed:
            cache = fleet.learner.prefix_cache
            if lease.prompt is None or loaded_model.depth(lease.prompt) is None:
                lease.prompt = cache.sent(lease.demand, agent, loaded_model, lease.began_at)
            cache.read(model, lease.demand.new_prefixes, agent, loaded_model, lease.prompt)
        lease.slow = agent.slowness(model)
        agent.epoch += 1
        if loaded:
            # The load blocked other requests there.
            fleet.on_change(agent)
            fleet.on_load(agent)
        learner = lease.learner
        if learner is not None:
            limit = learner.limit
            learner.began(lease, lease.began_at)
            self._watch_overlap(agent, model, learner)
            if learner.limit != limit:
                self._refit(agent, model)
                fleet.on_slot_free(agent, model)
        if agent.health.phase is not Phase.HEALTHY:
            self._ejection.gate(agent)

    def lease_ended(self, lease: SlotLease, outcome: Outcome | None) -> None:
        """The lease has been released; without an outcome the agent was the wrong one to ask."""
        fleet, agent, model = self._fleet, lease.agent, lease.model
        given_up = False
        _decrease(agent.running, model)
        if lease.began_at is not None:
            _decrease(agent.answering, model)
        else:
            self._unanswered[agent, model].discard(lease)
            if outcome not in (SUCCEEDED, Outcome.CANCELLED):
                self._prompt_not_read(lease)
        if model not in agent.running:
            del self._unanswered[agent, model]
        if lease.loading:
            given_up = self._load_given_up(lease)
        fleet.learner.placement.use(model).changed(-1, fleet.waiting(model), fleet.clock())
        agent.epoch += 1
        if lease.learner is not None:
            now = fleet.clock()
            if outcome is SUCCEEDED and lease.began_at is None:
                lease.learner.began(lease, now)
                self._watch_overlap(agent, model, lease.learner)
            # A load blocks requests that came after it.
            lease.learner.ended(lease, now, whole=outcome is SUCCEEDED and not agent.loading)
        self._refit(agent, model)
        if agent.half_open_lease is lease:
            agent.half_open_lease = None
        if agent.health.phase is not Phase.HEALTHY:
            self._ejection.gate(agent)
        if given_up:
            fleet.on_change(agent)  # the load blocked other requests there
            fleet.on_load(agent)
        fleet.on_slot_free(agent, model)

    def _prompt_not_read(self, lease: SlotLease) -> None:
        """The agent has refused or failed the request before an answer began: what it has cached is still there."""
        prompt, loaded_model = lease.prompt, lease.agent.loaded_models.get(lease.model)
        if prompt is not None and loaded_model is not None and not lease.known_tokens:
            self._fleet.learner.prefix_cache.not_read(loaded_model, prompt)

    def expire(self, now: float) -> None:
        for agent, model in [key for key, until in self._busy.items() if until <= now]:
            del self._busy[agent, model]
            agent.epoch += 1
            self._refit(agent, model)
            if not agent.removed:
                self._fleet.on_slot_free(agent, model)
        for learner, (agent, model) in list(self._overlaps.items()):
            changed = learner.passed(now)
            if learner.due == math.inf or agent.learners.get(model) is not learner:
                self._overlaps.pop(learner, None)
            if changed and agent.learners.get(model) is learner:
                self._refit(agent, model)
                if agent.health.phase is not Phase.HEALTHY:
                    self._ejection.gate(agent)
                self._fleet.on_slot_free(agent, model)

    def next_expiry(self, now: float) -> float:
        return min(*self._busy.values(), *(learner.due for learner in self._overlaps), math.inf, math.inf)

    def _take_slot(self, lease: SlotLease, agent: Agent, model: str) -> None:
        agent.running[model] = agent.running.get(model, 0) + 1
        self._unanswered.setdefault((agent, model), set()).add(lease)
        if not agent.fixed_slots:
            learner = agent.learners.get(model)
            if learner is None and len(agent.learners) < MAX_LEARNERS:
                learner = SlotLearner.beside(agent.learners.values())
                agent.learners[model] = learner
            if learner is not None:
                lease.learner = learner
                learner.sent(lease)
        fleet = self._fleet
        fleet.learner.estimates.asked(model, for_embeddings=lease.demand.output_limit == 0)
        use = fleet.learner.placement.use(model)
        use.request_arrived(lease.taken_at)
        use.changed(1, fleet.waiting(model), lease.taken_at)
        lease.sole = len(agent.running) == 1 and agent.running[model] == 1
        loaded_model = agent.loaded_models.get(model)
        if loaded_model is None:
            ready = agent.unlisted.serves(model, lease.demand.runner)
        else:
            ready = loaded_model.runner in (None, lease.demand.runner)
        if not ready:
            lease.loading = lease.cold = True
            agent.loaders[model] = agent.loaders.get(model, 0) + 1
            if agent.memory_known:
                self._load_begins(agent, model)
        if lease.demand.prefixes:
            prefix = fleet.learner.prefix_cache.find(lease.demand)
            lease.known_tokens = prefix.tokens if prefix is not None and prefix.agent is agent else 0
        if lease.demand.tokens and loaded_model is not None and not lease.loading:
            lease.prompt = fleet.learner.prefix_cache.sent(lease.demand, agent, loaded_model, lease.taken_at)
        agent.epoch += 1
        self._refit(agent, model)
        if agent.health.phase is not Phase.HEALTHY:
            if agent.health.phase is Phase.EJECTED and agent.half_open_lease is None:
                agent.half_open_lease = lease
            self._ejection.gate(agent)

    def load_began(self, agent: Agent, model: str) -> None:
        """The agent loads a model (a canonical name) that no request of it waits for."""
        agent.loaders[model] = agent.loaders.get(model, 0) + 1
        agent.loading.setdefault(model, self._fleet.clock())
        agent.epoch += 1
        self._fleet.memory_changed(agent)
        self._fleet.on_load(agent)

    def load_ended(self, agent: Agent, model: str, *, loaded: bool) -> None:
        """That load is over."""
        _decrease(agent.loaders, model)
        if loaded and agent.memory_known:
            agent.loaded_models.setdefault(model, LoadedModel("", self._fleet.clock()))
        if model in agent.loaded_models or model not in agent.loaders:
            self._load_is_over(agent, model)
        agent.epoch += 1
        if agent.health.phase is not Phase.HEALTHY:
            self._ejection.gate(agent)
        if not agent.removed:
            self._fleet.memory_changed(agent)
            self._fleet.on_change(agent)
            self._fleet.on_load(agent)

    def evicted(self, agent: Agent, model: str) -> None:
        """The model is not in the agent's memory any more: it has to load it for those that wait for it there."""
        for lease in self._unanswered.get((agent, model), ()):
            if lease.loading or agent.unlisted.serves(model, lease.demand.runner):
                continue
            lease.loading = lease.cold = True
            agent.loaders[model] = agent.loaders.get(model, 0) + 1
            self._load_begins(agent, model)

    def _load_begins(self, agent: Agent, model: str) -> None:
        """Requests wait for the agent to load the model, if it does not already."""
        if model in agent.loading:
            return
        now = self._fleet.clock()
        if model not in agent.loaded_models and not agent.has_room(model, now):
            agent.evicting.add(model)
        agent.loading[model] = now
        self._fleet.memory_changed(agent)
        self._fleet.on_load(agent)

    def _load_given_up(self, lease: SlotLease) -> bool:
        """A request ended before its model was loaded; True if no other request waits for the load."""
        agent, model = lease.agent, lease.model
        self._loads_no_more(lease)
        loaded_model = agent.loaded_models.get(model)
        if loaded_model is not None and loaded_model.runner not in (None, lease.demand.runner):
            # It may have been reloaded before the request ended: only an answer would tell.
            loaded_model.runner = None
        if model not in agent.loading:
            return False
        if model in agent.loaders:
            # Another request waits for the load: the host starts it again. That counts once, or requests that leave
            # one after the other would hold up those for other models for ever.
            if model not in agent.restarted:
                agent.restarted.add(model)
                agent.loading[model] = self._fleet.clock()
            return False
        self._load_is_over(agent, model)
        self._fleet.memory_changed(agent)
        return True

    @staticmethod
    def _load_is_over(agent: Agent, model: str) -> bool:
        """Whether there was one in progress."""
        agent.evicting.discard(model)
        agent.restarted.discard(model)
        return agent.loading.pop(model, None) is not None

    @staticmethod
    def _loads_no_more(lease: SlotLease) -> None:
        lease.loading = False
        _decrease(lease.agent.loaders, lease.model)

    def _refit(self, agent: Agent, model: str) -> None:
        """Tell the pools whether the agent has a free slot for the model."""
        slots = agent.slots_for(model)
        full = agent.running.get(model, 0) >= slots or (bool(self._busy) and (agent, model) in self._busy)
        changed = full is not (model in agent.full)
        if changed:
            agent.epoch += 1
            (agent.full.add if full else agent.full.discard)(model)
            self._fleet.pools.slots_changed(agent, model, full=full)
        placement = self._fleet.learner.placement
        if changed or not agent.fixed_slots:
            placement.refit(agent, model, slots)
        if not agent.fixed_slots and (others := agent.placed - agent.learners.keys()):
            slots = agent.first_limit()
            for other in others:
                placement.refit(agent, other, slots)

    def _watch_overlap(self, agent: Agent, model: str, learner: SlotLearner) -> None:
        """Call the learner again when its overlap will have lasted."""
        due = learner.due
        if due < math.inf:
            self._overlaps[learner] = agent, model
            self._fleet.expire_by(due)


def _decrease(counts: dict[str, int], model: str) -> None:
    """One less of the model."""
    left = counts[model] - 1
    if left:
        counts[model] = left
    else:
        del counts[model]
