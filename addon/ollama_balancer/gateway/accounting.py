"""An exchange that is over, as monitoring counts it."""

from __future__ import annotations

from typing import Any

from ..core.agent_records import Outcome
from ..core.registry import AgentRegistry
from ..core.stats import OTHER, RequestSummary
from ..ollama.routes import Kind, find_route
from ..text import one_line
from .context import Exchange
from .outcomes import outcome_of

KILLED = "killed"

CUT_OFF = "cancelled"
"""The reason of an agent's part of a request to several when the client has left."""


def ended(exchange: Exchange, registry: AgentRegistry) -> RequestSummary:
    """What there is to count of it."""
    agent = exchange.agent
    model = exchange.model_name or ""
    watcher = exchange.watcher
    timings = watcher.answer.timings if watcher is not None else None
    streamed = watcher is not None and watcher.streamed
    outcome = str(exchange.outcome)
    cancelled_by = ""
    if exchange.outcome is Outcome.CANCELLED:
        gone = "client_waiting" if agent is None else "client"
        cancelled_by = KILLED if exchange.problem == KILLED else gone
    elif exchange.outcome is Outcome.FAILED and not exchange.attempts:
        outcome = "refused"
    return RequestSummary(
        agent=agent.name if agent is not None else "",
        model=model if not model or registry.inventory.has_model(model) else OTHER,
        route=exchange.route.path if exchange.route is not None else OTHER,
        outcome=outcome,
        seconds=exchange.total or 0.0,
        waited=exchange.waited or None,
        first_token=exchange.seconds_to_first_byte if streamed else None,
        tokens_per_second=exchange.tokens_per_second,
        prompt_tokens=(timings.prompt_eval_count or 0) if timings is not None else 0,
        output_tokens=(timings.eval_count or 0) if timings is not None else 0,
        cancelled_by=cancelled_by,
        failures=tuple([(each.agent, str(each.kind)) for each in exchange.failures if each.reason != CUT_OFF]),
        status=exchange.status,
    )


def unrouted(path: str, status: int | None, cancelled_by: str = "") -> RequestSummary:
    """A request that ended before a route was asked for: answered with that status, or given up."""
    route = find_route(path)
    refused = "rejected" if status is not None and outcome_of(status) is Outcome.REJECTED else "refused"
    return RequestSummary(
        agent="",
        model="",
        route=route.path if route is not None else OTHER,
        outcome="cancelled" if status is None else refused,
        seconds=0.0,
        cancelled_by=cancelled_by,
        status=status,
    )


def is_row(exchange: Exchange) -> bool:
    """Whether it is one of those that people are shown: not what the balancer answers from what it knows."""
    listing = exchange.route is not None and exchange.route.kind is Kind.MERGED
    return exchange.outcome is not Outcome.SUCCEEDED or not (listing or not exchange.attempts)


def decision_of(exchange: Exchange, over: RequestSummary) -> dict[str, Any]:
    """What people are shown of it in passing."""
    return {
        "agent": over.agent or None,
        "model": one_line(exchange.model, 100) if exchange.model else None,
        "mode": exchange.mode,
        "why": exchange.why or (one_line(exchange.problem, 200) if exchange.problem else ""),
        "attempts": exchange.attempts,
        "outcome": over.outcome,
        "status": over.status,
        "ttft": over.first_token,
    }
