"""What the answer to a request has shown of the agent that gave it."""

from __future__ import annotations

from typing import NamedTuple

from .demand import Prefix


class AnswerObservation(NamedTuple):
    """An answer that is whole. Tokens, and seconds; None: the answer did not say."""

    prompt_tokens: int | None = None
    prompt_seconds: float | None = None
    output_tokens: int | None = None
    output_seconds: float | None = None
    load_seconds: float | None = None
    streamed: bool = True
    """Whether it came in pieces, so that its first byte tells when it began."""
    pieces: int = 0
    """Those that brought text: of a stream, mostly a token each."""
    context: Prefix | None = None
    """The beginning of a request that goes on from it, where the answer gives one."""
