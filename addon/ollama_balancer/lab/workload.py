"""The input of a simulation: hosts, models and requests."""

from dataclasses import dataclass

from ..core.demand import Demand
from .hosts import Model, Spec


@dataclass(frozen=True)
class Request:
    """`at` is in seconds from the start."""

    at: float
    client: str
    model: Model
    conversation: int
    prompt: int
    """Tokens, all turns so far included."""
    known: int
    """Of them, those that the turn before had already."""
    output: int
    demand: Demand | None = None
    """What the balancer reads of it; None: what the other fields say."""


@dataclass(frozen=True)
class Workload:
    """`requests` are in the order of their time."""

    hosts: tuple[Spec, ...]
    models: tuple[Model, ...]
    requests: tuple[Request, ...]
    seconds: float
    """From the end of the warm-up to the last request."""
    warm_up: float = 0.0
    """Seconds at the start that are not counted."""
    failures: bool = False
    """Whether hosts die, or are slow, for a while."""
