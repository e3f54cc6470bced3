"""What a request asks of an agent, as far as the choice among agents needs to know."""

from __future__ import annotations

from typing import NamedTuple

Prefix = tuple[bytes, int]
"""The key of a prompt's beginning, and its tokens."""


class Demand(NamedTuple):
    """`model` is a canonical name; `runner` the options that the model has to be loaded with, in one spelling."""

    model: str
    runner: str = ""
    tokens: int = 0
    """Of the prompt, estimated."""
    prefixes: tuple[Prefix, ...] = ()
    """The prompt's beginnings, the shortest first; none of a prompt that is hardly longer than a line."""
    new_prefixes: tuple[Prefix, ...] = ()
    """Those by which a prompt that goes on from this one is known."""
    output_limit: int | None = None
    """Tokens that the answer has at most; 0 for an embedding."""
    route: str = ""
    """On which it comes, as `Route.path`."""
    streams: bool = True
    """Whether the answer is to stream: then its first byte tells when it began."""
