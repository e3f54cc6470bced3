"""What the control API's table says of a call."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from ..core.access import Right
from . import models


@dataclass(frozen=True)
class Answer:
    """A response. `content`: the model of its JSON, or its media types if it is not JSON; None: no body."""

    text: str
    content: type[BaseModel] | tuple[str, ...] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Response headers and their descriptions."""
    also: tuple[str, ...] = ()
    """Other media types that a caller can ask for."""


@dataclass(frozen=True)
class Parameter:
    """A query parameter."""

    name: str
    text: str
    schema: dict[str, Any]


@dataclass(frozen=True)
class Call:
    """`operation` is the key of its handler in `ControlApi`. Each GET also answers HEAD."""

    method: str
    path: str
    operation: str
    text: str
    answers: dict[int, Answer]
    """By status, in addition to those that any call may return."""
    rights: tuple[Right, ...] = ()
    """Of which a caller needs one where calls need a key; none: it is open to all."""
    always: bool = False
    """Whether it needs one of them everywhere."""
    body: type[BaseModel] | None = None
    body_required: bool = True
    query: tuple[Parameter, ...] = ()


def error(text: str, **headers: str) -> Answer:
    return Answer(text, models.Error, {name.replace("_", "-"): value for name, value in headers.items()})
