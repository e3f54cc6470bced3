"""The record of a choice: how the candidates were scored, and that in words.

A score is in the scorer's own currency: seconds that count more or less than others, and costs to others. What is said
in seconds is what a client would measure until the first token. It is marked `~` where it is a guess: it rests on fewer
than `FEW` answers of the model on that agent, or on when the answer of somebody else will end.
"""

from enum import StrEnum
from typing import Any, NamedTuple

FEW = 3
"""Observations below which a figure is called a guess."""

WORTH_SAYING = 0.05
"""Seconds below which a difference is not worth a word."""


class Plan(StrEnum):
    """What an agent has to do before it can read the prompt."""

    WARM = "warm"
    """Nothing: the model is loaded."""
    UNKNOWN = "unknown"
    """Nothing, as far as is known: it has not told which models are loaded."""
    LOADING = "loading"
    """Finish the load in progress."""
    LOAD = "load"
    RELOAD = "reload"
    """Load the model again, with other options."""
    EVICT = "evict"
    """Load it in the place of an idle model."""
    DRAIN = "drain"
    """Finish what runs on another model, and load this one in its place."""
    CONTEND = "contend"
    """Load it in the place, or on the time, of a model that other requests need."""


class ScoredCandidate(NamedTuple):
    """An agent with the terms of its score: seconds, weighted, and what the choice costs others."""

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
    first: float
    """Seconds until the first token, as a client would measure them."""
    loads: float
    """The part of these that the agent takes to load the model."""
    writes: float
    """Seconds from the first token to the last."""
    plan: Plan
    guess: bool
    """Whether `first` rests on few observations."""
    cached: int
    """Tokens at the beginning of the prompt that it has cached."""
    displacement: float
    """The part of the interference that is the reading of another prompt, which it would evict from its cache."""

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


_CHOSEN = {
    Plan.WARM: "warm here",
    Plan.UNKNOWN: "free here",
    Plan.LOADING: "already loading it here",
    Plan.LOAD: "loads it here",
    Plan.RELOAD: "loads it here again, with other options",
    Plan.EVICT: "loads it here in place of an idle model",
    Plan.DRAIN: "loads it here once another model is idle",
    Plan.CONTEND: "loads it here though others need the host",
}

_OTHER = {
    Plan.LOADING: "is still loading it",
    Plan.LOAD: "would load it",
    Plan.RELOAD: "would load it again, with other options",
    Plan.EVICT: "would load it in place of another model",
}
"""How an agent would be slower: what follows is by how much."""

_COSTS_OTHERS = {
    Plan.DRAIN: "would have to finish with another model first",
    Plan.CONTEND: "would load it at the expense of a model that others need",
}
"""What speaks against an agent, and is no time that this request would take."""


def in_words(options: tuple[ScoredCandidate, ...]) -> str:
    """Why the first one was chosen, for people: what it has to do, and why the runner-up is worse.

    `warm here, next best gpu-1 would load it: +24 s`: the seconds are those until the first token.
    """
    best = options[0]
    text = _CHOSEN[best.plan]
    if best.loads >= WORTH_SAYING:
        text += f": {_seconds(best.loads, guess=best.guess)}"
    elif best.cached:
        text += ", prompt cached"
    return f"{text}, next best {options[1].agent} {_compared(best, options[1])}" if len(options) > 1 else text


def _compared(best: ScoredCandidate, other: ScoredCandidate) -> str:
    """Why the other one is no better, by what differs most."""
    if other.plan in _COSTS_OTHERS and other.plan is not best.plan:
        return _COSTS_OTHERS[other.plan]
    load, wait, prefill = other.load - best.load, other.wait - best.wait, other.prefill - best.prefill
    answer, interference = other.answer - best.answer, other.interference - best.interference
    most = max(load, wait, prefill, answer, interference)
    later = other.first - best.first
    if most < WORTH_SAYING:
        return "is as good"
    if most == load:
        text = _OTHER.get(other.plan, "would load it")
    elif most == wait:
        text = "is busy"
    elif most == prefill:
        text = "would read the prompt anew" if best.cached > other.cached else "reads more slowly"
    elif most == answer:
        text, later = "writes more slowly", other.writes - best.writes
    else:
        evicts = 2 * (other.displacement - best.displacement) > interference
        return "would evict the prompt of another conversation" if evicts else "would slow down what runs there"
    if later < WORTH_SAYING:
        return text
    return f"{text}: {_seconds(later, guess=best.guess or other.guess, sign='+')}"


def _seconds(seconds: float, *, guess: bool, sign: str = "") -> str:
    return f"{'~' if guess else ''}{sign}{seconds:.{1 if seconds < 9.95 else 0}f} s"
