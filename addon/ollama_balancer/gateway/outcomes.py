"""Maps response statuses to outcomes."""

from ..core.agent_records import Outcome


def outcome_of(status: int) -> Outcome:
    """A 4xx is the fault of the caller, except 429."""
    if status < 400:
        return Outcome.SUCCEEDED
    return Outcome.REJECTED if status < 500 and status != 429 else Outcome.FAILED
