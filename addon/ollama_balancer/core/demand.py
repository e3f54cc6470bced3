"""What a request needs of an agent: the input of the choice."""

from typing import NamedTuple

Prefix = tuple[bytes, int]
"""The hash of a prompt's prefix, and its length in tokens."""


class Demand(NamedTuple):
    """`model` is a canonical name; `runner` the options that the model has to be loaded with, in one spelling."""

    model: str
    runner: str = ""
    tokens: int = 0
    """Of the prompt, estimated."""
    prefixes: tuple[Prefix, ...] = ()
    """Prefixes of the prompt that may be cached, the shortest first; none for a very short prompt."""
    new_prefixes: tuple[Prefix, ...] = ()
    """The prefixes by which a follow-up prompt will be recognized."""
    output_limit: int | None = None
    """Tokens that the answer has at most; 0 for an embedding."""
    route: str = ""
    """On which it comes, as `Route.path`."""
    streams: bool = True
    """Whether the answer is to stream: then its first byte tells when it began."""
    tools: bool = False
    """Whether the model may call tools: then a program waits for the answer."""

    @property
    def needs_whole(self) -> bool:
        """Whether the client can do nothing with the answer's beginning."""
        return (self.tools or not self.streams) and self.output_limit != 0
