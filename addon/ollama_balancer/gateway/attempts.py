"""Attempts at an agent that came to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ..ollama.errors import Blame, classify, classify_message
from ..ollama.management import Reply
from .messages import Response


class FailureKind(StrEnum):
    """How an attempt without an answer failed. The values are labels of metrics, beside those of `Blame`."""

    CONNECT = "connect"
    TIMEOUT = "timeout"
    BROKEN = "broken"


CORRECTIONS = frozenset({Blame.LACKS_MODEL, Blame.LACKS_ROUTE})
"""Attempts that only showed that the agent was the wrong one to ask."""


@dataclass(frozen=True)
class Failure:
    """Why the last attempt came to nothing, as the adapter saw it."""

    reason: str
    connected: bool
    """Whether the agent was reached at all."""
    retriable: bool
    """Whether the request may go to another agent: nothing of an answer was seen, and the request is at hand."""
    refusal: Response | None = None
    """The answer, where there was one."""
    blame: Blame | None = None
    """Whom that answer blames; not the caller."""


@dataclass(frozen=True)
class FailedAttempt:
    """An agent that was tried in vain."""

    agent: str
    reason: str
    kind: Blame | FailureKind = FailureKind.BROKEN
    refusal: Response | None = None
    """What it answered."""


class Candidate(NamedTuple):
    """An agent that could have had the request, as it stood then."""

    agent: str
    score: float | None
    in_flight: int


def failure_kind(reply: Reply) -> Blame | FailureKind:
    """How an agent failed at its part of a request to several."""
    if reply.status is None:
        return FailureKind(reply.failure or FailureKind.BROKEN)
    if reply.lacks_it:
        return Blame.LACKS_MODEL
    return classify_message(reply.reason) if reply.status < 300 else classify(reply.status, reply.body)
