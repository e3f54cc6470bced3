"""What is learned from the answers that pass: how fast agents are, what is asked for, and who knows which prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ollama.shapes import Timings
from .conversations import Conversations
from .estimates import Estimates
from .placement import Placement

if TYPE_CHECKING:
    from .agent import Agent
    from .leases import SlotLease

FEW_TOKENS = 4
"""An answer or a prompt of fewer tokens says nothing about the pace."""

SHORTEST_LOAD = 0.2
"""Seconds: what took less was no load."""


class Learner:
    """Everything is told to it by the registry."""

    def __init__(self) -> None:
        self.estimates = Estimates()
        self.conversations = Conversations()
        self.placement = Placement()

    def forget(self, agent: Agent) -> None:
        """The agent is gone."""
        self.estimates.forget(agent.id)
        self.conversations.forget(agent)

    def answered(self, lease: SlotLease, timings: Timings, now: float) -> None:
        """An answer is whole. Of what its last event does not tell, the times of its bytes say something."""
        agent, model, estimates = lease.agent, lease.model, self.estimates
        slow_end = agent.slowness(model)
        slow = (lease.slow + slow_end) / 2
        began = lease.began_at
        streamed = began is not None and now > began
        tokens, seconds = timings.eval_count, timings.eval_duration
        if tokens and seconds is None and streamed and began is not None:
            tokens, seconds = tokens - 1, now - began
        if tokens and seconds and tokens >= FEW_TOKENS:
            estimates.decode.observe(agent.id, model, tokens / seconds * slow)
        limit = lease.demand.output_limit
        if timings.eval_count and (limit is None or timings.eval_count < limit):
            estimates.observe_output(model, timings.eval_count)
        silent = None if began is None or not streamed else began - lease.taken_at
        load = self._load(lease, timings, silent)
        if load is not None:
            estimates.load.observe(agent.id, model, load)
        if not lease.known_tokens:
            prompt, reading = timings.prompt_eval_count, timings.prompt_eval_duration
            if reading is None and silent is not None and not lease.cold:
                prompt, reading = lease.demand.tokens, silent
            if prompt and reading and prompt >= 8 * FEW_TOKENS:
                estimates.prefill.observe(agent.id, model, prompt / reading * lease.slow)

    def _load(self, lease: SlotLease, timings: Timings, silent: float | None) -> float | None:
        """Seconds that the agent took to load the model for it; None if it did not, or was busy with others."""
        if not lease.sole:
            return None
        load = timings.load_duration
        if load is None:
            if not lease.cold or silent is None:
                return None
            load = silent - lease.demand.tokens / self.estimates.prefill.value(lease.agent.id, lease.model)
        return load if load >= SHORTEST_LOAD else None
