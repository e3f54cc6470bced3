"""Records of an agent: its loaded models, its rates, and the outcomes of its requests."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

MAX_LOADED = 100
"""Loaded models that are accepted from one agent, and remembered of one that does not list them."""

MAX_SPEEDS = 1000
"""Models whose speed is kept per agent."""


class Outcome(StrEnum):
    """How a request ended on an agent."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    """With a 4xx: the request itself is at fault."""


class Rates(NamedTuple):
    """How fast an agent serves a model: tokens per second."""

    decode: float
    prefill: float
    observations: int
    """Answers on which `decode` rests."""


@dataclass(eq=False, slots=True)
class CachedPrompt:
    """A prompt that a host has read, and may have in its KV cache."""

    tokens: int
    used_at: float
    """When it was sent, in seconds of the registry's clock."""
    turns: int = 0
    """How many turns of its conversation came before."""
    common: int = 0
    """Tokens at its beginning that the loaded model had read before."""
    common_depth: int = 0
    """How many other prompts the loaded model had read since then."""
    shared: bool = False
    """Whether somebody has read a part of its beginning: then it does not show how fast prompts are read."""
    awaited: bool = False
    """Whether it may still be followed up."""


@dataclass(slots=True)
class LoadedModel:
    """A model that is loaded on an agent."""

    runner: str | None = None
    """The options that it was loaded with, in one spelling; None: not known."""
    proven_at: float = float("-inf")
    """When its last answer began there."""
    prompts: list[CachedPrompt] = field(default_factory=list)
    """The last ones that it has read, the newest last."""
    gone: bool = False
    """Whether it has been unloaded."""

    def depth(self, prompt: CachedPrompt) -> int | None:
        """How many other prompts it has read since; None: more than are tracked, or one that has taken its place."""
        return next((depth for depth, each in enumerate(reversed(self.prompts)) if each is prompt), None)


@dataclass
class Statistics:
    """Outcomes of the requests that an agent was sent. A request that was retried counts with each agent."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    rejected: int = 0
    ejections: int = 0
    response_seconds: float = 0.0
    """Total over the succeeded requests, from the choice of the agent to the last byte."""
    speeds: dict[str, float] = field(default_factory=dict)
    """Tokens per second by model: a moving average with a weight of 0.2 for the newest."""

    @property
    def ended(self) -> int:
        return self.succeeded + self.failed + self.cancelled + self.rejected

    def learn_speed(self, model: str, tokens_per_second: float) -> None:
        old = self.speeds.get(model)
        if old is None and len(self.speeds) >= MAX_SPEEDS:
            return
        self.speeds[model] = tokens_per_second if old is None else old + 0.2 * (tokens_per_second - old)
