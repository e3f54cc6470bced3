"""What an answer shows about the agent that gave it."""

from typing import NamedTuple

from .demand import Prefix


class AnswerObservation(NamedTuple):
    """A complete answer. Tokens, and seconds; None: the answer did not say."""

    prompt_tokens: int | None = None
    prompt_seconds: float | None = None
    output_tokens: int | None = None
    output_seconds: float | None = None
    load_seconds: float | None = None
    streamed: bool = True
    """Whether it came in pieces, so that its first byte tells when it began."""
    pieces: int = 0
    """Pieces that carried text: in a stream, mostly one token each."""
    cached_tokens: int | None = None
    """Of the prompt, those that were cached."""
    context: Prefix | None = None
    """The prefix of a follow-up request, where the answer gives a context."""
