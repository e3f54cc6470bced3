"""Learns from answers: how fast agents are, the demand for models, and which prefixes are cached where."""

from ..agent import Agent
from ..leases import SlotLease
from ..observations import AnswerObservation
from .estimates import Estimates
from .facts import Facts
from .placement import Placement
from .prefix_cache import PrefixCache

MIN_READ = 32
"""A prompt with fewer tokens is too short to measure prefill.

`--tune learning.MIN_READ`: flat from 1 to 256."""

MIN_TOKENS = 10
"""An answer with fewer tokens is too short to measure decoding: its first token counts as prefill."""

SHORTEST_LOAD = 0.2
"""Seconds: what took less was not a load.

`--tune learning.SHORTEST_LOAD`: all the same from 0.05 to 1."""


class Learner:
    """What has been learned of the fleet."""

    def __init__(self) -> None:
        self.estimates = Estimates()
        self.facts = Facts(self.estimates)
        self.prefix_cache = PrefixCache()
        self.placement = Placement()

    def forget(self, agent: Agent) -> None:
        """The agent has left."""
        self.estimates.forget(agent.id)
        self.facts.forget(agent.id)
        self.prefix_cache.forget(agent)

    def answered(self, lease: SlotLease, answer: AnswerObservation, now: float) -> None:
        """Learn from a complete answer. What its last event does not say is derived from the times of its bytes."""
        agent, model, estimates = lease.agent, lease.model, self.estimates
        if answer.context is not None:
            self.prefix_cache.remember((answer.context,), agent, agent.loaded_models.get(model), agent.slots_for(model))
        streamed, count = answer.streamed, answer.output_tokens
        if count is None:
            count = 1 if lease.demand.output_limit == 0 else answer.pieces if streamed else None
        slow_end = agent.slowness(model)
        slow = (lease.slow + slow_end) / 2
        began = lease.began_at
        tokens, seconds = count, answer.output_seconds
        if tokens and seconds is None and began is not None:
            if streamed:
                tokens, seconds = tokens - 1, now - began
            elif not lease.cold:
                # The whole came at once: what is left of the time when the prompt was read.
                seconds = began - lease.taken_at - self._reading(lease)
        if tokens and seconds is not None and seconds > 0 and tokens >= MIN_TOKENS:
            estimates.changed(model, estimates.decode.observe(agent.id, model, tokens / seconds * slow))
        limit = lease.demand.output_limit
        if count and (not limit or count < limit):
            estimates.observe_output(model, count)
        silent = None if began is None or not streamed else began - lease.taken_at
        load = self._load(lease, answer.load_seconds, silent)
        if load is not None:
            estimates.changed(model, estimates.load.observe(agent.id, model, load))
        if not lease.known_tokens:
            prompt, reading = answer.prompt_tokens, answer.prompt_seconds
            if reading is None and silent is not None and not lease.cold:
                prompt, reading = lease.demand.tokens, silent
            if prompt and reading and prompt >= MIN_READ:
                estimates.changed(model, estimates.prefill.observe(agent.id, model, prompt / reading * lease.slow))
        rates = estimates.shown(agent.id, model)
        if rates is not None:
            agent.rates[model] = rates

    def _reading(self, lease: SlotLease) -> float:
        """The estimated seconds of its prefill."""
        unread = max(0, lease.demand.tokens - lease.known_tokens)
        return unread / self.estimates.prefill.value(lease.agent.id, lease.model) * lease.slow

    def _load(self, lease: SlotLease, load: float | None, silent: float | None) -> float | None:
        """Seconds that the agent took to load the model; None if it did not, or if it was busy with other requests."""
        if not lease.sole:
            return None
        if load is None:
            if not lease.cold or silent is None:
                return None
            load = silent - self._reading(lease)
        return load if load >= SHORTEST_LOAD else None
