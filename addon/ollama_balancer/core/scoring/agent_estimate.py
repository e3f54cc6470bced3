"""What a request of one model is to expect on one agent, computed anew only where something has changed.

With a = requests of the model on the agent, n = how many it runs at once, k = models busy there:

    slow = (1 + 0.4 (min(n, a + 1) - 1)) k
    cost = wait + load + 0.15 answer x slow + harm + tokens / prefill rate x slow

`wait` is the time until one of n requests ends, where all slots are taken. `harm` is by how much those that run there
take longer. `load` is 0 for a model in memory, else the rest of its load, or all of a new one. It is so much dearer
that the request rather waits, where the load would push out a model in demand or keep the host from those who wait for
what it has, unless this model has many more requests for each of its slots than the other.

What a constant comes to at other values is shown by `python -m benches.fleet_simulation --tune NAME`; "flat" is said of
values between which that finds no difference beyond its noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from ..agent import SLOWDOWN, Agent, Warm
from ..decision import Option
from .learning import Learner

ANSWER_WEIGHT = 0.15
"""What a second of answering counts against a second before the first token: it is read while it comes.

`--tune agent_estimate.ANSWER_WEIGHT`: flat from 0 to 1, so that this is an opinion about readers."""

LEFT = 0.5
"""Part of an answer that is still to come of one that runs: on average half.

`--tune agent_estimate.LEFT`: flat from 0.1 to 1."""

LOAD_WEIGHT = 1.5
"""What a second of a load counts: meanwhile the host serves nobody that comes anew.

`--tune agent_estimate.LOAD_WEIGHT`: flat from 1 to 3, 0.5 is worse."""

EVICTION = 6.0
"""Seconds that count for the eviction of any model. `--tune agent_estimate.EVICTION`: flat from 0 to 30."""

THRASHING = 120.0
"""Seconds that count for the eviction of a model in demand, and for having to wait until one is idle.

`--tune agent_estimate.THRASHING`: 120 is as good as 240, 30 and less are far worse."""

IN_DEMAND = 0.6
"""Requests for each of its slots, with what is to be evicted gone, above which a model is in demand.

`--tune agent_estimate.IN_DEMAND`: flat from 0 to 1.2."""

MUCH_MORE = 4.0
"""How many times more requests for each of its slots a model has to have, to push out one in demand.

`--tune agent_estimate.MUCH_MORE`: 4 is as good as 16, 2 and less are worse."""

DRAIN = 4.0
"""Answers, in their length, that count for waiting until a busy model can be evicted.

`--tune agent_estimate.DRAIN`: flat from 0 to 16; `THRASHING`, which is added to it, decides."""

SPREAD = 1.25
"""By which factor the mean of what is left of a service exceeds the estimate, which is a median.

`--tune agent_estimate.SPREAD`: flat from 0.6 to 2.5; 1 was somewhat better, at the edge of the noise."""

LEAST_LEFT = 0.1
"""Part of a load's time that is left of one that takes longer than was thought.

`--tune agent_estimate.LEAST_LEFT`: 0.02 is as good, 0.3 worse."""

LONGEST_LOAD = 2.0
"""How many times as long as was thought a load may take. After that it is thought to be over and its prompt to be read,
or, for who needs it, to be stuck: it is expected to take as long again as it has taken.

`--tune agent_estimate.LONGEST_LOAD`: 1.2 is worse, 4 no better."""


class Situation(NamedTuple):
    """What the choice goes by, beside the agents. Times are seconds of the registry's clock."""

    learner: Learner
    now: float
    waiting: Callable[[str], int]
    """How many wait for a model."""
    chance: Callable[[], float]
    """Random numbers from 0 to 1."""


class Forecast:
    """What a request of one model is to expect on one agent now."""

    __slots__ = (
        "agent",
        "answer",
        "cold",
        "epoch",
        "evicts",
        "fixed",
        "full",
        "generation",
        "harm",
        "load",
        "model",
        "observations",
        "per_token",
        "runner",
        "shared",
        "sole",
        "wait",
    )

    def __init__(self, agent: Agent, model: str, runner: str) -> None:
        self.agent = agent
        self.model = model
        self.runner = runner
        self.epoch = -1
        """The agent's when this was computed; -1: it changes with time alone."""
        self.generation = -1
        """That of the model's estimates."""
        self.fixed = self.per_token = 0.0
        """The cost: seconds, and seconds for each token of the prompt. Without what `eviction` adds."""
        self.wait = self.load = self.answer = self.harm = 0.0
        self.shared = 0.0
        """Of the load, what others gain by it, too."""
        self.observations = 0
        self.full = self.cold = False
        self.sole = False
        """Whether the agent has the model in memory and runs no other."""
        self.evicts = False
        """Whether a load there may be at others' cost: then `eviction` is to be asked, for that changes with every
        request of the fleet."""

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
        answer = alone * slow
        self.answer = ANSWER_WEIGHT * answer
        self.per_token = slow / rates.prefill
        self.wait = SPREAD * answer / slots if full else 0.0
        if full or not running:
            self.harm = 0.0
        elif busy == 1:
            self.harm = ours * LEFT * alone * SLOWDOWN
        else:
            self.harm = self._harm(at, busy)
        self.load = self.shared = 0.0
        self.cold = self.evicts = False
        if agent.loading:
            self._loading(at)
        warm = agent.warm.get(model)
        ready = not agent.memory_known if warm is None else warm.runner in (None, self.runner)
        if not ready and model not in agent.loading:
            self._cold(at, answer, warm)
        self.sole = not self.cold and len(running) == (ours > 0)
        self.fixed = self.wait + self.load + self.answer + self.harm
        self.epoch = -1 if agent.loading else agent.epoch
        self.generation = estimates.generation(model)

    def _harm(self, at: Situation, busy: int) -> float:
        """Seconds by which those that run there take longer together."""
        agent, estimates = self.agent, at.learner.estimates
        before = len(agent.running)
        by_another_model = (busy - before) / before
        harm = 0.0
        for model, count in agent.running.items():
            batch = 1 + SLOWDOWN * (count - 1)
            longer = SLOWDOWN / batch if model == self.model else by_another_model
            if longer:
                alone = estimates.output(model) / estimates.decode.value(agent.id, model)
                harm += count * LEFT * alone * batch * before * longer
        return harm

    def _loading(self, at: Situation) -> None:
        """What the agent loads now. A load of another model holds up all that come after it."""
        agent, load = self.agent, at.learner.estimates.load
        others = 0.0
        for model, since in agent.loading.items():
            seconds = load.value(agent.id, model)
            taken = at.now - since
            overdue = taken >= LONGEST_LOAD * seconds
            remains = taken if overdue else max(LEAST_LEFT * seconds, seconds - taken)
            if model == self.model:
                self.load = remains
            elif not overdue:
                others += remains
        if others and self.model not in agent.loading:
            self.full = True
            self.wait = max(self.wait, others)

    def _cold(self, at: Situation, answer: float, warm: Warm | None) -> None:
        """The agent has to load the model, or to load it with other options."""
        agent = self.agent
        self.cold = True
        own = self.load = LOAD_WEIGHT * at.learner.estimates.load.value(agent.id, self.model)
        if warm is not None:
            self.load += EVICTION
        elif len(agent.warm) + len(agent.loading) < agent.fits():
            self.shared = own
            self.evicts = True
        else:
            self.load += EVICTION
            self.evicts = True
            if all(other in agent.running for other in agent.warm):
                self.load += DRAIN * answer + THRASHING

    def eviction(self, at: Situation) -> float:
        """What it counts that others lose by the load: a model that is pushed out, and the host's time.

        Which model is pushed out is the host's choice among the idle ones.
        """
        agent, placement = self.agent, at.learner.placement
        mine = placement.pressure(self.model, at.waiting(self.model), at.now)
        for other in agent.warm:
            waiting = at.waiting(other)
            if waiting and other != self.model and placement.pressure(other, waiting, at.now) * MUCH_MORE > mine:
                return THRASHING
        if self.shared:
            return 0.0
        idle = [other for other in agent.warm if other not in agent.running] or agent.warm
        for other in idle:
            theirs = placement.pressure(other, at.waiting(other), at.now, without=agent)
            if theirs == math.inf or (theirs > IN_DEMAND and theirs * MUCH_MORE > mine):
                return THRASHING
        return 0.0

    def option(self, tokens: int, queue: float, gain: float, eviction: float) -> Option:
        """As it was weighed for a prompt with so many tokens to read.

        `queue` are the seconds until those before it in the line have their turn, `gain` the part of a load that is
        others' gain, `eviction` what `eviction` says.
        """
        wait = self.wait + queue if self.full else self.wait
        load = self.load - self.shared * gain + eviction
        prefill = self.per_token * tokens
        cost = wait + load + prefill + self.answer + self.harm
        return Option(
            self.agent.name, cost, wait, load, prefill, self.answer, self.harm, not self.full, self.observations
        )
