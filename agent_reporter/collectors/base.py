"""What a collector is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ..addresses import Endpoint

Fields = Mapping[str, object]
"""Some of AgentMetrics's fields by name."""


@dataclass(frozen=True)
class Host:
    """What collectors are told about where they run."""

    ollama: Endpoint
    """The host's own Ollama."""
    balancers: tuple[str, ...] = ()
    """Host names or addresses of the balancers."""


class Collector(Protocol):
    """Made once with the Host, asked once a report. Raises whatever it likes: the report goes on without it."""

    async def collect(self) -> Fields: ...
