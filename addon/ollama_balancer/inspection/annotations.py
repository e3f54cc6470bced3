"""The comment, marker and record that a balanced flow carries."""

from __future__ import annotations

from mitmproxy import http

from ..fleet.agent import Outcome
from ..proxying.exchange import Exchange
from ..text import one_line

METADATA_KEY = "balancer"


def annotate(flow: http.HTTPFlow, exchange: Exchange) -> None:
    """Write down where the request went, why, and what came of it."""
    record = exchange.record()
    flow.metadata[METADATA_KEY] = record
    flow.comment = comment(exchange)
    if exchange.failures or exchange.outcome is Outcome.FAILED:
        flow.marked = ":warning:"


def comment(exchange: Exchange) -> str:
    """One line: agent, model, mode and why, speed, attempts, problem."""
    agent = exchange.agent
    nobody = "balancer" if exchange.outcome is Outcome.SUCCEEDED else "no agent"
    parts = [f"→ {agent.name if agent else nobody}"]
    if exchange.model:
        parts.append(one_line(exchange.model))
    if exchange.why:
        parts.append(f"{exchange.mode}: {exchange.why}")
    if exchange.tokens_per_second is not None:
        parts.append(f"{exchange.tokens_per_second:.0f} tok/s")
    if exchange.first_byte is not None:
        parts.append(f"first byte {(exchange.first_byte - exchange.started) * 1000:.0f} ms")
    if exchange.attempts > 1 or exchange.failures:
        tried = ", ".join(f"{failure.agent}: {failure.reason}" for failure in exchange.failures)
        parts.append(one_line(f"try {exchange.attempts} ({tried})"))
    if exchange.outcome is Outcome.CANCELLED:
        parts.append("cancelled")
    elif exchange.problem:
        parts.append(one_line(exchange.problem))
    return " · ".join(parts)
