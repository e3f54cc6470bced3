"""The interface of a collector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..addresses import Endpoint
from .process import ServerProcess

Fields = Mapping[str, object]
"""Some of AgentMetrics's fields by name."""


@dataclass(frozen=True)
class Host:
    """What collectors know about the host."""

    ollama: Endpoint
    """The host's own Ollama."""
    balancers: Sequence[str] = ()
    """Host names or addresses of the balancers; discovery may add more."""
    advertised: bool = False
    """Whether an address was advertised explicitly."""
    server: ServerProcess = field(default_factory=ServerProcess)
    """The Ollama server's process, shared by several collectors."""


class PartialError(Exception):
    """Some of the data could not be read, which was logged. `fields` has the rest."""

    def __init__(self, fields: Fields) -> None:
        super().__init__("only a part of it could be read")
        self.fields = fields


class Collector(Protocol):
    """Created once with the Host and called for each report. May raise anything."""

    async def collect(self) -> Fields: ...
