"""The comment, marker and record that a balanced flow carries."""

from collections.abc import Sequence

from mitmproxy import http

from ...core.agent import Agent
from ...core.agent_records import Outcome
from ...gateway.callers import UNKNOWN
from ...gateway.context import RequestContext
from ...saved_flows.reading import METADATA_KEY as METADATA_KEY
from ...text import first_names, one_line
from .marks import set_mark

COMPARISON_KEY = "balancer_comparison"
"""The metadata of a flow that is one of several copies of a request: the name of the group."""

MAX_NAMES = 8

SLOW_SECONDS = 10.0
"""Seconds to the first token, including the queue, above which an answer counts as slow."""

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
    return agents[0].name if len(agents) == 1 else ", ".join(first_names([agent.name for agent in agents], MAX_NAMES))


def annotate(flow: http.HTTPFlow, context: RequestContext) -> None:
    """Set comment, marker and record. A mark set by a user stays."""
    flow.metadata[METADATA_KEY] = context.record()
    flow.comment = comment(context)
    compared = COMPARISON_KEY in flow.metadata
    if compared:
        flow.comment += f" · comparison {flow.metadata[COMPARISON_KEY]}"
    set_mark(flow, marker(context) or (COMPARED if compared else ""))


def marker(context: RequestContext) -> str:
    """What is out of the ordinary, as one of mitmproxy's markers; empty where nothing is."""
    match context.outcome:
        case Outcome.CANCELLED:
            return CANCELLED
        case Outcome.REJECTED:
            return REJECTED
        case Outcome.FAILED if context.first_byte is None:
            return REFUSED
        case Outcome.FAILED:
            streamed = context.watcher is not None and context.watcher.streamed
            return BROKEN if streamed else FAILED
    if context.failures:
        return RETRIED
    return SLOW if (context.seconds_to_first_byte or 0.0) > SLOW_SECONDS else ""


def comment(context: RequestContext) -> str:
    """One line: agent, model, prompt, client, speed, time to first token, mode and why, attempts, problem."""
    request_parts = [one_line(context.model)] if context.model else []
    if context.excerpt:
        request_parts.append(f"“{context.excerpt}”")
    if context.client != UNKNOWN:
        request_parts.append(one_line(context.client, 60))
    if context.waiting_since is not None:
        return " · ".join(["waiting for a free agent", *request_parts])
    fallback = "balancer" if context.outcome in (Outcome.SUCCEEDED, Outcome.REJECTED) else "no agent"
    parts = [f"→ {names_of(context.agents) or fallback}", *request_parts]
    if context.tokens_per_second is not None:
        parts.append(f"{context.tokens_per_second:.0f} tok/s")
    first = context.seconds_to_first_byte
    if first is not None and context.watcher is not None:
        if context.watcher.streamed:
            parts.append(f"TTFT {_time(first)}")
        elif context.total is not None:
            parts.append(f"in {_time(context.total)}")
    if context.why:
        parts.append(f"{context.mode}: {context.why}")
    if context.fan_out is not None and context.failures:
        failed = "; ".join(f"{failure.agent}: {failure.reason}" for failure in context.failures)
        parts.append(one_line(f"{len(context.failures)} of {context.attempts} failed ({failed})"))
    elif context.fan_out is None and (context.attempts > 1 or context.failures):
        tried = ", ".join(f"{failure.agent}: {failure.reason}" for failure in context.failures)
        parts.append(one_line(f"attempt {context.attempts} ({tried})"))
    if context.outcome is Outcome.CANCELLED:
        parts.append(context.problem if context.problem == "killed" else "cancelled")
    elif context.outcome is Outcome.REJECTED:
        parts.append(one_line(f"rejected with {context.status}: {context.problem}"))
    elif context.problem:
        parts.append(one_line(context.problem))
    return " · ".join(parts)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
