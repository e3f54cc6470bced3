"""The comment, marker and record that a balanced flow carries."""

from __future__ import annotations

from collections.abc import Sequence

from mitmproxy import http

from ..fleet.agent import Agent, Outcome
from ..proxying.exchange import Exchange
from ..text import one_line

METADATA_KEY = "balancer"

MAX_NAMES = 8


def names_of(agents: Sequence[Agent]) -> str:
    """The agents' names with commas between them; of many, how many more there are."""
    more = len(agents) - MAX_NAMES
    names = [agent.name for agent in agents[:MAX_NAMES]]
    return ", ".join([*names, f"and {more} more"] if more > 0 else names)


def annotate(flow: http.HTTPFlow, exchange: Exchange) -> None:
    """Write down where the request went, why, and what came of it."""
    record = exchange.record()
    flow.metadata[METADATA_KEY] = record
    flow.comment = comment(exchange)
    if exchange.failures or exchange.outcome is Outcome.FAILED:
        flow.marked = ":warning:"


def comment(exchange: Exchange) -> str:
    """One line: agent, model, mode and why, speed, attempts, problem."""
    nobody = "balancer" if exchange.outcome is Outcome.SUCCEEDED else "no agent"
    parts = [f"→ {names_of(exchange.agents) or nobody}"]
    if exchange.model:
        parts.append(one_line(exchange.model))
    if exchange.why:
        parts.append(f"{exchange.mode}: {exchange.why}")
    if exchange.tokens_per_second is not None:
        parts.append(f"{exchange.tokens_per_second:.0f} tok/s")
    if exchange.first_byte is not None:
        parts.append(f"first byte {(exchange.first_byte - exchange.started) * 1000:.0f} ms")
    if exchange.fan_out is not None and exchange.failures:
        failed = "; ".join(f"{failure.agent}: {failure.reason}" for failure in exchange.failures)
        parts.append(one_line(f"{len(exchange.failures)} of {exchange.attempts} could not ({failed})"))
    elif exchange.fan_out is None and (exchange.attempts > 1 or exchange.failures):
        tried = ", ".join(f"{failure.agent}: {failure.reason}" for failure in exchange.failures)
        parts.append(one_line(f"try {exchange.attempts} ({tried})"))
    if exchange.outcome is Outcome.CANCELLED:
        parts.append("cancelled")
    elif exchange.problem:
        parts.append(one_line(exchange.problem))
    return " · ".join(parts)
