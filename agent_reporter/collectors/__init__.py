"""The collectors: one per file and one row in COLLECTORS, which is their order."""

from collections.abc import Callable

from .base import Collector, Fields, Host, PartialError
from .connections import ConnectionsCollector
from .cpu import CpuCollector
from .disk import DiskCollector
from .gpus import GpusCollector
from .load import LoadCollector
from .memory import MemoryCollector
from .network import NetworkCollector
from .ollama import OllamaCollector
from .reach import ReachCollector
from .server import ServerCollector

__all__ = ["COLLECTORS", "Collector", "Fields", "Host", "PartialError"]

COLLECTORS: dict[str, Callable[[Host], Collector]] = {
    "cpu": CpuCollector,
    "load": LoadCollector,
    "memory": MemoryCollector,
    "network": NetworkCollector,
    "gpus": GpusCollector,
    "connections": ConnectionsCollector,
    # After connections, which would count their calls.
    "ollama": OllamaCollector,
    # After ollama: once it answers, its process can be told from others by where it listens.
    "server": ServerCollector,
    "disk": DiskCollector,
    "reach": ReachCollector,
}
