"""The bodies and answers of the calls by which hosts join."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ..core.join_codes import DEFAULT_SECONDS, MAX_SECONDS, MIN_SECONDS
from ..storage.keys import HOST_NAME
from .decision_models import Answer


class MakeJoinCode(BaseModel):
    """The optional body of the making of a join code."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=f"^{HOST_NAME.pattern}$")] | None = None
    """The name under which the host joins, which may have joined before. Without: the host's own, if that is free."""
    expires_in: Annotated[int, Field(ge=MIN_SECONDS, le=MAX_SECONDS)] = DEFAULT_SECONDS
    """Seconds."""


class NewJoinCode(Answer):
    """A join code, which cannot be seen again, and what to run on the host."""

    code: str
    name: str | None
    expires_in: int
    """Seconds."""
    command: str
    """For Linux and macOS."""
    powershell: str
    """For Windows."""


class JoinedHost(Answer):
    """A host that has joined."""

    name: str
    """Under which it is to report."""
    key: str
    """The name of its key."""
    secret: str | None
    """Of its key, which cannot be seen again; null: it is the one that the call presented."""
