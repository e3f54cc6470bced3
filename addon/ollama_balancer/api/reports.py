"""POST /api/agents/NAME/metrics, which bypasses the application because it is frequent."""

import re
import time
from collections.abc import Callable

from pydantic import ValidationError

from agent_reporter.wire import AgentMetrics, check_size, describe

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
        f"timestamp: {ahead:.0f} s ahead of the balancer's clock, at most {FARTHEST_AHEAD:.0f} s are allowed: "
        "correct the clock of the host, or that of the balancer"
    )


def store_report(
    registry: AgentRegistry,
    agent: Agent,
    body: bytes,
    now: float,
    on_version: Callable[[Agent], None] = lambda agent: None,
) -> None:
    """Store an agent's report. ValueError says what is wrong with it. `now` is as for `time_problem`; `on_version` is
    called where the reporter has another version than before.
    """
    try:
        metrics = AgentMetrics.model_validate_json(check_size(body))
    except ValidationError as e:
        raise ValueError(describe(e.errors())) from e
    except ValueError as e:
        raise ValueError(f"body: {e}") from e
    if problem := time_problem(metrics, now):
        raise ValueError(problem)
    before = agent.metrics
    registry.update_metrics(agent.id, metrics)
    if before is None or before.reporter_version != metrics.reporter_version:
        on_version(agent)


def take_report(
    registry: AgentRegistry,
    path: str,
    body: bytes,
    may_report: Callable[[Agent], bool],
    on_version: Callable[[Agent], None] = lambda agent: None,
) -> Agent | None:
    """Store the report of a caller that may report, by the path of the call; returns the agent. None: the application
    is to report the error.
    """
    match = _PATH.fullmatch(path)
    agent = match and registry.get(match[1])
    if not agent or not may_report(agent):
        return None
    try:
        store_report(registry, agent, body, time.time(), on_version)
    except ValueError:
        return None
    return agent
