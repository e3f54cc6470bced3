"""POST /api/agents/NAME/metrics, the one control call that comes all the time, past the application."""

from __future__ import annotations

import re

from agent_reporter.wire import AgentMetrics, check_size

from ..fleet.agent import Agent
from ..fleet.registry import AgentRegistry

_PATH = re.compile(r"/api/agents/([A-Za-z0-9._:\[\]-]+)/metrics")


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
    registry.update_metrics(agent.id, metrics)
    return agent
