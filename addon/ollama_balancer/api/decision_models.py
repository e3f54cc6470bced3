"""How agents were scored for a request, as the document of the control API describes it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(ge=0)]


class Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), use_attribute_docstrings=True)


class AgentEstimate(Answer):
    """One agent as it was scored for a request; times are in seconds.

    The choice goes by `cost`, the sum of the weighted terms `wait` to `harm`, of which some are costs to others. What a
    client would measure are `first`, `loads` and `writes`.
    """

    agent: str
    cost: float
    wait: float
    load: float
    prefill: float
    answer: float
    harm: float
    """Interference: by how much the request slows those that already run there, and what it will take to read a prompt
    again that it evicts from the cache."""
    free: bool
    """Whether it had a free slot."""
    observations: int
    """Answers from which the agent's speed is known; 0: a guess."""
    first: float
    """Until the first token."""
    loads: float
    writes: float
    """From the first token to the last."""
    plan: str
    """What it has to do first: warm (nothing), unknown, loading, load, reload, evict, drain or contend."""
    guess: bool
    """Whether `first` rests on few observations."""
    cached: int
    """Tokens of the prompt that it has cached."""
    displacement: float
    """The part of `harm` that is the reading of another prompt, which it would evict from its cache."""


class Decision(Answer):
    """Why an agent's last request went there; the first option is the one that was chosen."""

    age: Seconds
    model: str
    options: list[AgentEstimate]
