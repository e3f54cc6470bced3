"""An exchange that is over, as monitoring counts it. Reasons are put into a few kinds: labels must not be endless."""

from __future__ import annotations

import re
from typing import Any

from ..fleet.agent import Outcome
from ..fleet.registry import AgentRegistry
from ..fleet.tally import OTHER, Ended
from ..ollama.names import canonical_name
from ..text import one_line
from .exchange import Exchange

KILLED = "killed"

_KINDS = (
    ("lacks_model", re.compile(r"does not have the model")),
    ("status", re.compile(r"status \d")),
    ("timeout", re.compile(r"no first byte|not reached within|timeout|timed out")),
    ("connect", re.compile(r"connect|refused|unreachable|no route", re.IGNORECASE)),
)


def kind_of(reason: str) -> str:
    """What kind of failure that reason of an attempt is."""
    return next((kind for kind, pattern in _KINDS if pattern.search(reason)), "broken")


def ended(exchange: Exchange, registry: AgentRegistry) -> Ended:
    """What there is to count of it."""
    agent = exchange.agent
    model = canonical_name(exchange.model) if exchange.model else ""
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
    return Ended(
        agent=agent.name if agent is not None else "",
        model=model if not model or registry.has_model(model) else OTHER,
        route=exchange.route.path if exchange.route is not None else OTHER,
        outcome=outcome,
        seconds=exchange.total or 0.0,
        waited=exchange.waited or None,
        first_token=exchange.seconds_to_first_byte if streamed else None,
        tokens_per_second=exchange.tokens_per_second,
        prompt_tokens=(timings.prompt_eval_count or 0) if timings is not None else 0,
        output_tokens=(timings.eval_count or 0) if timings is not None else 0,
        cancelled_by=cancelled_by,
        failures=tuple([(failure.agent, kind_of(failure.reason)) for failure in exchange.failures]),
    )


def decision_of(exchange: Exchange, over: Ended) -> dict[str, Any]:
    """What people are shown of it in passing."""
    return {
        "agent": over.agent or None,
        "model": one_line(exchange.model, 100) if exchange.model else None,
        "mode": exchange.mode,
        "why": exchange.why or (one_line(exchange.problem, 200) if exchange.problem else ""),
        "attempts": exchange.attempts,
        "outcome": over.outcome,
        "ttft": over.first_token,
    }
