"""What a collector is."""

from __future__ import annotations

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
    """A collector that has logged what failed, and gives what did not."""

    def __init__(self, fields: Fields) -> None:
        super().__init__("only a part of it could be read")
        self.fields = fields


class Collector(Protocol):
    """Made once with the Host, asked once a report. Raises whatever it likes: the report goes on without it."""

    async def collect(self) -> Fields: ...
