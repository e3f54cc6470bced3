"""What is read from the host: one collector a file, and one row each in COLLECTORS, which is also their order."""

from __future__ import annotations

from collections.abc import Callable

from .base import Collector, Fields, Host
from .connections import ConnectionsCollector
from .cpu import CpuCollector
from .gpus import GpusCollector
from .memory import MemoryCollector
from .ollama import OllamaCollector
from .reach import ReachCollector
from .server import ServerCollector

__all__ = ["COLLECTORS", "Collector", "Fields", "Host"]

COLLECTORS: dict[str, Callable[[Host], Collector]] = {
    "cpu": CpuCollector,
    "memory": MemoryCollector,
    "gpus": GpusCollector,
    "server": ServerCollector,
    "connections": ConnectionsCollector,
    # After connections, which would count their calls.
    "ollama": OllamaCollector,
    "reach": ReachCollector,
}
