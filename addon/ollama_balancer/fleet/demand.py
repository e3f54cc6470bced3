"""What a request asks of an agent, as far as the choice among agents needs to know."""

from __future__ import annotations

from dataclasses import dataclass

Step = tuple[bytes, int]
"""The key of a prompt's beginning, and its tokens."""


@dataclass(frozen=True, slots=True)
class Demand:
    """`model` is a canonical name; `runner` the options that the model has to be loaded with, in one spelling."""

    model: str
    runner: str = ""
    tokens: int = 0
    """Of the prompt, estimated."""
    steps: tuple[Step, ...] = ()
    """The prompt's beginnings, the shortest first."""
    remember: tuple[Step, ...] = ()
    """Those by which a prompt that goes on from this one is known."""
    output_limit: int | None = None
    """Tokens that the answer has at most; 0 for an embedding."""
