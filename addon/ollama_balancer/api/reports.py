"""POST /api/agents/NAME/metrics, the one control call that comes all the time, past the application."""

from __future__ import annotations

import re
import time

from agent_reporter.wire import AgentMetrics, check_size

from ..core.agent import Agent
from ..core.registry import AgentRegistry

_PATH = re.compile(r"/api/agents/([A-Za-z0-9._:\[\]-]+)/metrics")

FARTHEST_AHEAD = 60.0
"""Seconds by which a report's time may be ahead of the balancer's clock. Reports that are older than the last one do
not count, so that one of the far future would be the last for long.
"""


def time_problem(metrics: AgentMetrics, now: float) -> str | None:
    """Why a report with that time is not taken. `now` is the time of day, in seconds since 1970."""
    ahead = metrics.timestamp.timestamp() - now
    if ahead <= FARTHEST_AHEAD:
        return None
    return (
        f"timestamp: {ahead:.0f} s ahead of the balancer's clock, which may be at most {FARTHEST_AHEAD:.0f} s behind: "
        "set the clock of the host, or that of the balancer"
    )


def take_report(registry: AgentRegistry, path: str, body: bytes) -> Agent | None:
    """Take in a report of a caller who has presented the token; whose it is. None: the application is to say what is
    wrong.
    """
    match = _PATH.fullmatch(path)
    agent = match and registry.get(match[1])
    if not agent:
        return None
    try:
        metrics = AgentMetrics.model_validate_json(check_size(body))
    except ValueError:
        return None
    if time_problem(metrics, time.time()):
        return None
    registry.update_metrics(agent.id, metrics)
    return agent
