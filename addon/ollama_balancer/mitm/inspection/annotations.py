"""The comment, marker and record that a balanced flow carries."""

from __future__ import annotations

from collections.abc import Sequence

from mitmproxy import http

from ...core.agent import Agent
from ...core.agent_records import Outcome
from ...gateway.callers import UNKNOWN
from ...gateway.context import Exchange
from ...text import one_line
from .marks import set_mark

METADATA_KEY = "balancer"

COMPARISON_KEY = "balancer_comparison"
"""The metadata of a flow that is one of several copies of a request: the name of the group."""

MAX_NAMES = 8

SLOW_SECONDS = 10.0
"""Until the first token, the time in the line included, after which an answer counts as slow."""

RETRIED = ":arrows_counterclockwise:"
REFUSED = ":no_entry:"
REJECTED = ":warning:"
BROKEN = ":boom:"
FAILED = ":x:"
CANCELLED = ":heavy_multiplication_x:"
SLOW = ":snail:"
COMPARED = ":balance_scale:"
MARKERS = frozenset(("", RETRIED, REFUSED, REJECTED, BROKEN, FAILED, CANCELLED, SLOW, COMPARED))


def names_of(agents: Sequence[Agent]) -> str:
    """The agents' names with commas between them; of many, how many more there are."""
    if len(agents) == 1:
        return agents[0].name
    more = len(agents) - MAX_NAMES
    names = [agent.name for agent in agents[:MAX_NAMES]]
    return ", ".join([*names, f"and {more} more"] if more > 0 else names)


def annotate(flow: http.HTTPFlow, exchange: Exchange) -> None:
    """Write down where the request went, why, and what came of it. A mark that a person has set stays."""
    flow.metadata[METADATA_KEY] = exchange.record()
    flow.comment = comment(exchange)
    compared = COMPARISON_KEY in flow.metadata
    if compared:
        flow.comment += f" · comparison {flow.metadata[COMPARISON_KEY]}"
    set_mark(flow, marker(exchange) or (COMPARED if compared else ""))


def marker(exchange: Exchange) -> str:
    """What is out of the ordinary, as one of mitmproxy's markers; empty where nothing is."""
    match exchange.outcome:
        case Outcome.CANCELLED:
            return CANCELLED
        case Outcome.REJECTED:
            return REJECTED
        case Outcome.FAILED if exchange.first_byte is None:
            return REFUSED
        case Outcome.FAILED:
            streamed = exchange.watcher is not None and exchange.watcher.streamed
            return BROKEN if streamed else FAILED
    if exchange.failures:
        return RETRIED
    return SLOW if (exchange.seconds_to_first_byte or 0.0) > SLOW_SECONDS else ""


def comment(exchange: Exchange) -> str:
    """One line: agent, model, prompt, client, speed, time to first token, mode and why, attempts, problem."""
    asked = [one_line(exchange.model)] if exchange.model else []
    if exchange.excerpt:
        asked.append(f"“{exchange.excerpt}”")
    if exchange.client != UNKNOWN:
        asked.append(one_line(exchange.client, 60))
    if exchange.waiting_since is not None:
        return " · ".join(["waits for a free agent", *asked])
    nobody = "balancer" if exchange.outcome in (Outcome.SUCCEEDED, Outcome.REJECTED) else "no agent"
    parts = [f"→ {names_of(exchange.agents) or nobody}", *asked]
    if exchange.tokens_per_second is not None:
        parts.append(f"{exchange.tokens_per_second:.0f} tok/s")
    first = exchange.seconds_to_first_byte
    if first is not None and exchange.watcher is not None:
        if exchange.watcher.streamed:
            parts.append(f"TTFT {_time(first)}")
        elif exchange.total is not None:
            parts.append(f"in {_time(exchange.total)}")
    if exchange.why:
        parts.append(f"{exchange.mode}: {exchange.why}")
    if exchange.fan_out is not None and exchange.failures:
        failed = "; ".join(f"{failure.agent}: {failure.reason}" for failure in exchange.failures)
        parts.append(one_line(f"{len(exchange.failures)} of {exchange.attempts} could not ({failed})"))
    elif exchange.fan_out is None and (exchange.attempts > 1 or exchange.failures):
        tried = ", ".join(f"{failure.agent}: {failure.reason}" for failure in exchange.failures)
        parts.append(one_line(f"try {exchange.attempts} ({tried})"))
    if exchange.outcome is Outcome.CANCELLED:
        parts.append(exchange.problem if exchange.problem == "killed" else "cancelled")
    elif exchange.outcome is Outcome.REJECTED:
        parts.append(one_line(f"rejected with {exchange.status}: {exchange.problem}"))
    elif exchange.problem:
        parts.append(one_line(exchange.problem))
    return " · ".join(parts)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
