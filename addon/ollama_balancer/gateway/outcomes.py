"""What an answer's status says of how its request ended."""

from __future__ import annotations

from ..core.agent_records import Outcome


def outcome_of(status: int) -> Outcome:
    """A 4xx is the caller's own, but for one that says that too much is going on."""
    if status < 400:
        return Outcome.SUCCEEDED
    return Outcome.REJECTED if status < 500 and status != 429 else Outcome.FAILED
