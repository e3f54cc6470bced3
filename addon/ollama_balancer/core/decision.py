"""How the agents were weighed for a request: data, for people and for the record."""

from __future__ import annotations

from typing import Any, NamedTuple


class ScoredCandidate(NamedTuple):
    """One agent as it was weighed. Seconds."""

    agent: str
    cost: float
    wait: float
    load: float
    prefill: float
    answer: float
    interference: float
    free: bool
    """Whether it had a slot free."""
    observations: int
    """Answers of that model on that agent from which its pace is known; 0: a guess by others, or a prior."""

    def describe(self) -> dict[str, Any]:
        """The candidate as the API and the flows' records have it: `interference` is called `harm` there."""
        values = {key: round(v, 3) if isinstance(v, float) else v for key, v in self._asdict().items()}
        return {"harm" if key == "interference" else key: value for key, value in values.items()}


class Decision(NamedTuple):
    """How the agents were weighed for a request; the first option is the one that was chosen."""

    at: float
    """Seconds of the registry's clock."""
    model: str
    options: tuple[ScoredCandidate, ...]

    def describe(self, now: float) -> dict[str, Any]:
        options = [option.describe() for option in self.options]
        return {"age": round(now - self.at, 3), "model": self.model, "options": options}
