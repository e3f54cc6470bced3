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
    """What collectors are told about where they run."""

    ollama: Endpoint
    """The host's own Ollama."""
    balancers: Sequence[str] = ()
    """Host names or addresses of the balancers; there may be more of them later."""
    advertised: bool = False
    """Whether balancers were told another address than the one that reports come from."""
    server: ServerProcess = field(default_factory=ServerProcess)
    """The Ollama server's process, which several collectors ask about."""


class PartialError(Exception):
    """Some of the data could not be read, which was logged; carries the rest."""

    def __init__(self, fields: Fields) -> None:
        super().__init__("only a part of it could be read")
        self.fields = fields


class Collector(Protocol):
    """Created once with the Host and called for each report. May raise anything."""

    async def collect(self) -> Fields: ...
