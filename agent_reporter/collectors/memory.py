"""Memory: how much of the host's RAM is in use."""

import psutil

from .base import Fields, Host


class MemoryCollector:
    """Collects `memory_usage` in percent: what is not available to programs without swapping."""

    def __init__(self, host: Host) -> None:
        del host

    async def collect(self) -> Fields:
        memory = psutil.virtual_memory()
        return {"memory_usage": used_percent(memory.total, memory.available)}


def used_percent(total: int, available: int) -> float:
    """Percent of `total` bytes, 0 to 100. Raises ValueError for a total of 0."""
    if total <= 0:
        raise ValueError("the system reports no memory")
    return min(100.0, max(0.0, 100.0 * (total - available) / total))
