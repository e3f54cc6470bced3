"""What is read from the host: one collector a file, and one row each in COLLECTORS, which is also their order."""

from __future__ import annotations

from collections.abc import Callable

from .base import Collector, Fields, Host
from .connections import ConnectionsCollector
from .cpu import CpuCollector
from .memory import MemoryCollector
from .ollama import OllamaCollector

__all__ = ["COLLECTORS", "Collector", "Fields", "Host"]

COLLECTORS: dict[str, Callable[[Host], Collector]] = {
    "cpu": CpuCollector,
    "memory": MemoryCollector,
    "connections": ConnectionsCollector,
    "ollama": OllamaCollector,  # after connections, which would count its calls
}
