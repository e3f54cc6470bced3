"""Learns from answers: how fast agents are, the demand for models, and which prefixes are cached where."""

from ..agent import Agent
from ..agent_records import CachedPrompt
from ..decision import FEW
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

MIN_COMMON = 256
"""Tokens in common with a prompt that was read before: fewer do not show whether that is still cached.

`--tune learning.MIN_COMMON`: 64 is as good, 1,024 worse, not to learn it worse still."""

WHOLE = 0.75
"""The part of the estimated tokens that a host has to have read: it drops the beginning of what is too long."""

MIN_SAVED = 0.2
"""Seconds that it has to save that a prompt is cached: less does not show beside what every request takes."""

SHORTEST_LOAD = 0.2
"""Seconds: what took less was not a load.

`--tune learning.SHORTEST_LOAD`: all the same from 0.05 to 1."""


class Learner:
    """What has been learned of the fleet."""

    def __init__(self) -> None:
        self.estimates = Estimates()
        self.facts = Facts(self.estimates)
        self.prefix_cache = PrefixCache(lambda model: self.estimates.changed(model, news=True))
        self.placement = Placement()

    def forget(self, agent: Agent) -> None:
        """The agent has left."""
        self.estimates.forget(agent.id)
        self.facts.forget(agent.id)
        self.prefix_cache.forget(agent)

    def answered(self, lease: SlotLease, answer: AnswerObservation, now: float) -> None:
        """Learn from a complete answer. What its last event does not say is derived from the times of its bytes."""
        agent, model, estimates = lease.agent, lease.model, self.estimates
        loaded_model = agent.loaded_models.get(model)
        if answer.context is not None and lease.prompt is not None and loaded_model is not None:
            self.prefix_cache.read(model, (answer.context,), agent, loaded_model, lease.prompt)
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
        if count and limit != 0 and (limit is None or count < limit):
            estimates.observe_output(model, count)
        silent = None if began is None or not streamed else began - lease.taken_at
        if answer.load_seconds is not None and not lease.demand.runner:
            missed = lease.cold and began is not None and agent.loaded_at >= began and model not in agent.listed
            agent.unlisted.answered(model, loaded=answer.load_seconds >= SHORTEST_LOAD, missed=missed)
        load = self._load(lease, answer.load_seconds, silent)
        if load is not None:
            estimates.changed(model, estimates.load.observe(agent.id, model, load))
        self._learn_reading(lease, answer, silent)
        rates = estimates.shown(agent.id, model)
        if rates is not None:
            agent.rates[model] = rates

    def _learn_reading(self, lease: SlotLease, answer: AnswerObservation, silent: float | None) -> None:
        """Learn how fast the agent reads prompts, and how many it keeps."""
        tokens, seconds = answer.prompt_tokens, answer.prompt_seconds
        timed = seconds is not None
        if not timed and silent is not None and not lease.cold:
            tokens, seconds = lease.demand.tokens, silent
        if not tokens or not seconds:
            return
        cached = answer.cached_tokens
        prompt = lease.prompt
        if prompt is not None and prompt.shared and not lease.cold:
            cached = self._learn_cached(lease, prompt, answer, tokens, seconds if timed or lease.sole else None)
            if cached is None:
                return
        read = tokens - (cached or 0)
        if read >= MIN_READ:
            rate = read / seconds * lease.slow
            self.estimates.changed(lease.model, self.estimates.prefill.observe(lease.agent.id, lease.model, rate))

    def _learn_cached(
        self, lease: SlotLease, prompt: CachedPrompt, answer: AnswerObservation, tokens: int, seconds: float | None
    ) -> int | None:
        """Learn whether a prompt was cached that has `tokens` and took `seconds` to read, if that was timed.

        How many of them were cached; None: that cannot be told.
        """
        agent, model, cached = lease.agent, lease.model, answer.cached_tokens
        # `prompt.common` is estimated, as the whole prompt is.
        common = tokens * prompt.common / lease.demand.tokens
        telling = common >= max(MIN_COMMON, tokens / 2)
        if cached is not None:
            if telling:
                self._met_again(agent, model, prompt, cached=2 * cached >= common)
            return cached
        rate, observations = self.estimates.prefill.known(agent.id, model)
        saved = common / rate * lease.slow
        whole = tokens >= WHOLE * lease.demand.tokens and (answer.load_seconds or 0.0) < SHORTEST_LOAD
        if not (telling and whole and observations >= FEW and saved >= MIN_SAVED) or seconds is None:
            return None
        was_cached = seconds < tokens / rate * lease.slow - saved / 2
        self._met_again(agent, model, prompt, cached=was_cached)
        return None if was_cached else 0

    def _met_again(self, agent: Agent, model: str, prompt: CachedPrompt, *, cached: bool) -> None:
        agent.kept_prompts.observe(model, prompt.common_depth, agent.slots_for(model), cached=cached)
        agent.epoch += 1

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
