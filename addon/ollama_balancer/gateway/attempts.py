"""How attempts to get an answer from an agent end."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ..core.agent_records import Outcome
from ..ollama.errors import Blame, classify, classify_message
from ..ollama.management import Reply
from .messages import Response


def outcome_of(status: int) -> Outcome:
    """A 4xx is the fault of the caller, except 429."""
    if status < 400:
        return Outcome.SUCCEEDED
    return Outcome.REJECTED if status < 500 and status != 429 else Outcome.FAILED


class FailureKind(StrEnum):
    """How an attempt failed that got no answer. The values are metric labels, as are those of `Blame`."""

    CONNECT = "connect"
    TIMEOUT = "timeout"
    BROKEN = "broken"


CORRECTIONS = frozenset({Blame.LACKS_MODEL, Blame.LACKS_ROUTE})
"""Failures that only show that the agent was the wrong choice."""


@dataclass(frozen=True)
class Failure:
    """Why the last attempt failed, as the adapter saw it."""

    reason: str
    connected: bool
    """Whether a connection was established."""
    retriable: bool
    """Whether another agent may be tried: the client has seen nothing of an answer, and the body is still available."""
    refusal: Response | None = None
    """The error response, if there was one."""
    blame: Blame | None = None
    """Who is to blame for the error response; never the caller."""


@dataclass(frozen=True)
class FailedAttempt:
    """An agent that was tried without success."""

    agent: str
    reason: str
    kind: Blame | FailureKind = FailureKind.BROKEN
    refusal: Response | None = None
    """Its error response."""


class Candidate(NamedTuple):
    """An agent that was eligible for the request, with its figures at that moment."""

    agent: str
    score: float | None
    in_flight: int


def failure_kind(reply: Reply) -> Blame | FailureKind:
    """Classify the failure of one leg of a fan-out."""
    if reply.status is None:
        return FailureKind(reply.failure or FailureKind.BROKEN)
    if reply.lacks_it:
        return Blame.LACKS_MODEL
    return classify_message(reply.reason) if reply.status < 300 else classify(reply.status, reply.body)
