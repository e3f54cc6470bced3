"""The expected cost of a request on one agent, recomputed only after a change.

With a = requests of the model on the agent, n = how many it runs at once, k = models busy there:

    slow = (1 + 0.4 (min(n, a + 1) - 1)) k
    cost = wait + load + weight x answer x slow + interference + displacement + tokens / prefill rate x slow

`wait` is the time until one of n requests ends, if no slot is free; part of it, if the free one is not proven to be
there. `interference` is the time that the requests which run there lose, `displacement` what it takes to read a prompt
again that has to be evicted from the cache, times the follow-ups that are expected of it. `load` is 0 for a loaded
model, else the rest of the load in progress, or a whole load. Where the load would evict a model in demand, or block
requests that wait for a model the host has, it costs so much that the request rather waits, unless its model has many
more requests per slot than the other.

`python -m benches.fleet_simulation --tune NAME` shows what other values of a constant come to; "flat" is said of values
between which it finds no difference beyond its noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..agent import SLOWDOWN, Agent
from ..agent_records import LoadedModel
from ..decision import FEW, Plan, ScoredCandidate
from ..demand import Demand
from .learning import Learner

ANSWER_WEIGHT = 0.15
"""The weight of a second of generation against a second before the first token: a stream is read as it comes. It is 1
where the client needs the whole answer: a program that makes one call after the other gets on as fast as answers end.

`--tune agent_estimate.ANSWER_WEIGHT`: flat from 0 to 1, so that this is an opinion about readers."""

LEFT = 0.5
"""The expected remaining part of a running answer.

On average half. `--tune agent_estimate.LEFT`: flat from 0.1 to 1."""

LOAD_WEIGHT = 1.5
"""The weight of a second of loading: meanwhile the host serves no new request.

`--tune agent_estimate.LOAD_WEIGHT`: flat from 1 to 3, 0.5 is worse."""

EVICTION = 6.0
"""The cost of evicting any model, in seconds.

`--tune agent_estimate.EVICTION`: flat from 0 to 30."""

THRASHING = 120.0
"""The cost of evicting a model in demand, and of waiting until a model is idle, in seconds.

`--tune agent_estimate.THRASHING`: 120 is as good as 240, 30 and less are far worse."""

IN_DEMAND = 0.6
"""Requests per remaining slot above which a model is in demand.

`--tune agent_estimate.IN_DEMAND`: flat from 0 to 1.2."""

EVICTION_RATIO = 4.0
"""How many times the requests per slot a model must have to evict a model in demand.

`--tune agent_estimate.EVICTION_RATIO`: 4 is as good as 16, 2 and less are worse."""

DRAIN = 4.0
"""The cost of waiting until a busy model can be evicted, in answers.

`--tune agent_estimate.DRAIN`: flat from 0 to 16; `THRASHING`, which is added to it, decides."""

SPREAD = 1.25
"""The factor by which the mean of the remaining service time exceeds the estimate, which is a median.

`--tune agent_estimate.SPREAD`: flat from 0.6 to 2.5; 1 was somewhat better, at the edge of the noise."""

MIN_LEFT = 0.1
"""The remaining part of a load that is overdue.

`--tune agent_estimate.MIN_LEFT`: 0.02 is as good, 0.3 worse."""

LONGEST_LOAD = 2.0
"""How many times as long as estimated a load may take. After that it counts as finished for other models, and as stuck
for its own: it is expected to take as long again as it has taken.

`--tune agent_estimate.LONGEST_LOAD`: 1.2 is worse, 4 no better."""

DISPLACEMENT = 2.0
"""The weight of a second in which somebody's prompt has to be read again: it evicts the next one, and holds up others.

`--tune agent_estimate.DISPLACEMENT`: 0, 0.5 and 1 are worse, 4 is little better. Where there are more conversations
than slots to keep them in (`@many`), less is worse for the first token, and better for the last one."""

UNNOTICED = 1.0
"""Seconds of reading again that nobody minds: short conversations go where they are answered soonest.

`--tune agent_estimate.UNNOTICED`: 0 is better for documents, and worse for chats (`@busy`)."""


def answer_weight(demand: Demand) -> float:
    """What a second of the answer counts."""
    return 1.0 if demand.needs_whole else ANSWER_WEIGHT


class Situation(NamedTuple):
    """What scores depend on besides the agents. Times are seconds of the registry's clock."""

    learner: Learner
    now: float
    waiting: Callable[[str], int]
    """The number of requests that wait for a model."""
    chance: Callable[[], float]
    """Random numbers from 0 to less than 1."""


@dataclass(eq=False, slots=True)
class AgentEstimate:
    """The terms of the cost of a request for one model on one agent."""

    agent: Agent
    model: str
    runner: str
    epoch: int = -1
    """The agent's when this was computed; -1: it changes with time alone."""
    generation: int = -1
    """That of the model's estimates."""
    fixed: float = 0.0
    per_token: float = 0.0
    """The cost: seconds, and seconds for each token of the prompt. Without the answer, and what `eviction` adds."""
    wait: float = 0.0
    load: float = 0.0
    writes: float = 0.0
    """Seconds that the answer takes, without any weight."""
    interference: float = 0.0
    prefill: float = 1.0
    """Tokens of a prompt per second that the agent reads for one request alone."""
    displacement: float = 0.0
    """Seconds that others will take to read a prompt again that a new one evicts from the cache."""
    until: float = math.inf
    """When that has to be computed again."""
    shared: float = 0.0
    """The part of the load that the requests behind this one gain from."""
    loads: float = 0.0
    """Seconds of loading, without any weight."""
    plan: Plan = Plan.WARM
    observations: int = 0
    observed_loads: int = FEW
    """Loads that `loads` rests on."""
    full: bool = False
    cold: bool = False
    sole: bool = False
    """Whether the agent has the model loaded and runs no other, and its free slot is known to be there."""
    evicts: bool = False
    """Whether a load may evict another model: then `eviction` has to be computed, which changes with every request
    of the fleet."""

    def refresh(self, at: Situation) -> None:
        agent, model, estimates = self.agent, self.model, at.learner.estimates
        running = agent.running
        ours = running.get(model, 0)
        slots = agent.fixed_slots or agent.slots_for(model)
        busy = len(running) if ours else len(running) + 1
        full = self.full = model in agent.full
        slow = (1 + SLOWDOWN * (slots - 1 if full else ours)) * busy
        rates = agent.rates.get(model) or estimates.rates(agent.id, model)
        self.observations = rates.observations
        alone = estimates.output(model) / rates.decode
        answer = self.writes = alone * slow
        self.per_token = slow / rates.prefill
        self.wait = SPREAD * answer / slots if full else 0.0
        trial = False
        if ours and not full and not agent.fixed_slots:
            learner = agent.learners.get(model)
            if learner is not None and ours >= learner.proven:
                trial = True
                self.wait = learner.risk * SPREAD * answer / ours
        if full or not running:
            self.interference = 0.0
        elif busy == 1:
            self.interference = ours * LEFT * alone * SLOWDOWN
        else:
            self.interference = self._interference(at, busy)
        self.load = self.shared = self.loads = 0.0
        self.cold = self.evicts = False
        loaded_model = agent.loaded_models.get(model)
        unlisted = loaded_model is None and agent.unlisted.serves(model, self.runner)
        loaded = not agent.memory_known if loaded_model is None else loaded_model.runner in (None, self.runner)
        ready = loaded or unlisted
        if agent.loading and model not in agent.unlisted.remote:
            self._loading(at, ready=ready)
        self.plan = Plan.LOADING if self.load else Plan.WARM if loaded_model is not None or unlisted else Plan.UNKNOWN
        if not ready and model not in agent.loading:
            self._cold(at, answer, loaded_model)
        self.sole = not self.cold and len(running) == (ours > 0) and not trial
        self.prefill = rates.prefill
        self.refresh_displacement(at)
        self.epoch = -1 if agent.loading else agent.epoch
        self.generation = estimates.generation(model)

    def refresh_displacement(self, at: Situation) -> None:
        """Recompute what changes with time alone: who has waited for long is not expected to go on."""
        agent, model, cache = self.agent, self.model, at.learner.prefix_cache
        self.displacement, self.until = 0.0, math.inf
        loaded_model = None if self.cold else agent.loaded_models.get(model)
        prompt = cache.displaced(agent, model, loaded_model) if loaded_model is not None else None
        if prompt is not None:
            expected, until = cache.expected(model, prompt, at.now)
            noticed = prompt.tokens / self.prefill - UNNOTICED
            if expected and noticed > 0:
                self.displacement, self.until = DISPLACEMENT * expected * noticed, until
        self.fixed = self.wait + self.load + self.interference + self.displacement

    def _interference(self, at: Situation, busy: int) -> float:
        """Seconds that the requests running there lose, in total."""
        agent, estimates = self.agent, at.learner.estimates
        before = len(agent.running)
        by_another_model = (busy - before) / before
        interference = 0.0
        for model, count in agent.running.items():
            batch = 1 + SLOWDOWN * (count - 1)
            longer = SLOWDOWN / batch if model == self.model else by_another_model
            if longer:
                alone = estimates.output(model) / estimates.decode.value(agent.id, model)
                interference += count * LEFT * alone * batch * before * longer
        return interference

    def _loading(self, at: Situation, *, ready: bool) -> None:
        """Account for loads in progress.

        A load of another model blocks those that come after it, of a loaded model only if that may be evicted for it.
        """
        agent, load = self.agent, at.learner.estimates.load
        others = 0.0
        for other, since in agent.loading.items():
            seconds, observed = load.known(agent.id, other)
            taken = at.now - since
            overdue = taken >= LONGEST_LOAD * seconds
            remains = taken if overdue else max(MIN_LEFT * seconds, seconds - taken)
            if other == self.model:
                self.load = self.loads = remains
                self.observed_loads = observed
            elif not overdue and (not ready or other in agent.evicting):
                others += remains
        if others and self.model not in agent.loading:
            self.full = True
            self.wait = max(self.wait, others)

    def _cold(self, at: Situation, answer: float, loaded_model: LoadedModel | None) -> None:
        """The agent has to load the model, or to load it with other options."""
        agent = self.agent
        self.cold = True
        self.loads, self.observed_loads = at.learner.estimates.load.known(agent.id, self.model)
        own = self.load = LOAD_WEIGHT * self.loads
        self.plan = Plan.LOAD
        if loaded_model is not None:
            self.load += EVICTION
            self.plan = Plan.RELOAD
        elif agent.has_room(self.model, at.now):
            self.shared = own
            self.evicts = True
        else:
            self.load += EVICTION
            self.evicts = True
            self.plan = Plan.EVICT
            if all(other in agent.running for other in agent.loaded_models):
                self.load += DRAIN * answer + THRASHING
                self.plan = Plan.DRAIN

    def eviction(self, at: Situation) -> float:
        """The cost of the load to others: an evicted model, and the host's time.

        The host chooses which of its idle models it evicts.
        """
        agent, placement = self.agent, at.learner.placement
        mine = placement.demand_per_slot(self.model, at.waiting(self.model), at.now)
        for other in (*agent.loaded_models, *agent.unlisted.copies):
            waiting = at.waiting(other)
            if (
                waiting
                and other != self.model
                and placement.demand_per_slot(other, waiting, at.now) * EVICTION_RATIO > mine
            ):
                return THRASHING
        if self.shared:
            return 0.0
        idle = [other for other in agent.loaded_models if other not in agent.running] or list(agent.loaded_models)
        for other in [*idle, *(copy for copy, original in agent.unlisted.copies.items() if original in idle)]:
            theirs = placement.demand_per_slot(other, at.waiting(other), at.now, without=agent)
            if theirs == math.inf or (theirs > IN_DEMAND and theirs * EVICTION_RATIO > mine):
                return THRASHING
        return 0.0

    def option(
        self, tokens: int, weight: float, queue: float, gain: float, eviction: float, cached: int, *, continued: bool
    ) -> ScoredCandidate:
        """As it was weighed for a prompt with so many tokens to read, besides those that are cached, and an answer of
        that weight.

        `queue` are the seconds until those before it in the line have their turn, `gain` the part of a load that is
        others' gain, `eviction` what `eviction` says. `continued`: it takes the place of no other prompt.
        """
        wait = self.wait + queue if self.full else self.wait
        load = self.load - self.shared * gain + eviction
        prefill, answer = self.per_token * tokens, weight * self.writes
        displacement = 0.0 if continued else self.displacement
        interference = self.interference + displacement
        return ScoredCandidate(  # by position: by name this would take three times as long
            self.agent.name,
            wait + load + prefill + answer + interference,
            wait,
            load,
            prefill,
            answer,
            interference,
            not self.full,
            self.observations,
            wait + self.loads + prefill,
            self.loads,
            self.writes,
            Plan.CONTEND if eviction and self.plan is not Plan.DRAIN else self.plan,
            self.observations < FEW or wait > 0 or (self.loads > 0 and self.observed_loads < FEW),
            cached,
            displacement,
        )
