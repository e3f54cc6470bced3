"""The record of a choice: how the candidates were scored."""

from typing import Any, NamedTuple


class ScoredCandidate(NamedTuple):
    """An agent with the terms of its score, in seconds."""

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
    """Answers of the model on the agent that the rates rest on; 0: estimated from other agents, or a prior."""

    def describe(self) -> dict[str, Any]:
        """The candidate as the API and the flows' records have it: `interference` is called `harm` there."""
        values = {key: round(v, 3) if isinstance(v, float) else v for key, v in self._asdict().items()}
        return {"harm" if key == "interference" else key: value for key, value in values.items()}


class Decision(NamedTuple):
    """How the candidates were scored for a request; the first one was chosen."""

    at: float
    """Seconds of the registry's clock."""
    model: str
    options: tuple[ScoredCandidate, ...]

    def describe(self, now: float) -> dict[str, Any]:
        options = [option.describe() for option in self.options]
        return {"age": round(now - self.at, 3), "model": self.model, "options": options}
