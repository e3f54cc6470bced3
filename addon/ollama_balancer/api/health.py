"""GET /health. It is asked as soon as the port is open, so it needs nothing that takes a while to load."""

from typing import Any

from ..core.agent import Status
from ..core.registry import AgentRegistry


def health(registry: AgentRegistry, *, ending: bool) -> tuple[int, dict[str, Any]]:
    """The status and what to answer; `ending`: the program takes no more requests."""
    counts = registry.counts()
    problem = "ending" if ending else None if counts[Status.ONLINE] else "no agent can serve"
    return 503 if problem else 200, {"status": problem or "ok", "agents": by_state(counts)}


def by_state(counts: dict[Status, int]) -> dict[str, int]:
    return {status.value: counts.get(status, 0) for status in Status}
