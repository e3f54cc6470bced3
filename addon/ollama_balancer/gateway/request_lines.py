"""What became of a request, in the words of the terminal and the event log: nothing here is measured or counted."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

from ..core.agent_records import Outcome
from ..core.stats import RequestSummary
from ..text import one_line
from .access import prompt_and_output_tokens
from .accounting import KILLED
from .attempts import CORRECTIONS
from .context import RequestContext

NOTICEABLE_LOAD = 0.5
"""Seconds from which a load is worth a word where the balancer did not expect one: a warm model's answer names some
milliseconds.
"""

NOTICEABLE_WAIT = 0.005

DISCONNECTED = "the client has"
"""How the reason begins for which the balancer has disconnected a client."""

MAX_NAME = 60
MAX_PATH = 60
MAX_PROBLEM = 300

NOBODY = "-"


class Cells(NamedTuple):
    """The columns of a request's line, each without control characters; empty where there is nothing to say."""

    agent: str
    model: str
    status: str
    speed: str
    first: str
    """When the first token came, or how long an answer in one piece took."""
    tokens: str
    call: str
    """Method and path, in the place of speed, time and tokens, where there are none."""
    notes: str
    """How warm the model was, and how long the request was queued."""
    trouble: str
    """What was tried, or what went wrong."""


class RequestLine:
    """A finished request as the message of a log record: worked out when it is shown, and once."""

    def __init__(self, context: RequestContext, summary: RequestSummary) -> None:
        self._context = context
        self._summary = summary

    @property
    def is_trouble(self) -> bool:
        """Whether something failed that was not the caller's fault."""
        context = self._context
        failed = any(failure.kind not in CORRECTIONS for failure in context.failures)
        return context.outcome is Outcome.FAILED or (failed and context.outcome is Outcome.SUCCEEDED)

    @cached_property
    def cells(self) -> Cells:
        context = self._context
        prompt, output = prompt_and_output_tokens(context)
        tokens = output or prompt
        counted = tokens > 0 and context.outcome in (Outcome.SUCCEEDED, Outcome.CANCELLED)
        rate = context.tokens_per_second
        return Cells(
            agent=_agents(context),
            model=one_line(context.model, MAX_NAME) if context.model else NOBODY,
            status=_status(context, self._summary),
            speed=f"{rate:.{0 if rate >= 10 else 1}f} tok/s" if counted and rate is not None else "",
            first=_first(context, self._summary) if counted else "",
            tokens=f"{tokens} token{'' if tokens == 1 else 's'}" if counted else "",
            call="" if counted else f"{one_line(context.method, 20)} {one_line(context.path, MAX_PATH)}",
            notes=", ".join(_notes(context)),
            trouble="; ".join(_trouble(context, self._summary)),
        )

    def __str__(self) -> str:
        """One line, for logs that show a time of their own."""
        *cells, trouble = self.cells
        return "  ".join(filter(None, cells)) + (f" ({trouble})" if trouble else "")


def seconds_text(seconds: float) -> str:
    """Two or three digits."""
    return f"{seconds:.{2 if seconds < 0.995 else 1 if seconds < 100 else 0}f} s"


def _agents(context: RequestContext) -> str:
    agents = context.agents
    if not agents:
        return NOBODY
    return agents[0].name if len(agents) == 1 else f"{len(agents)} agents"


def _status(context: RequestContext, summary: RequestSummary) -> str:
    if summary.status is not None:
        return str(summary.status)
    return "err" if context.outcome is Outcome.FAILED else NOBODY


def _first(context: RequestContext, summary: RequestSummary) -> str:
    if summary.first_token is not None:
        return f"TTFT {seconds_text(summary.first_token)}"
    return f"in {seconds_text(summary.seconds)}"


def _notes(context: RequestContext) -> list[str]:
    notes = []
    lease, watcher = context.lease, context.watcher
    if lease is not None and lease.model is not None and watcher is not None and context.outcome is Outcome.SUCCEEDED:
        load = watcher.answer.timings.load_duration
        if load is not None and (lease.cold or load >= NOTICEABLE_LOAD):
            notes.append(f"loaded {seconds_text(load)}")
        elif lease.cold and load is None:
            notes.append("loaded")
        elif context.waited < NOTICEABLE_WAIT:
            notes.append("warm")
    if context.waited >= NOTICEABLE_WAIT:
        notes.append(f"queued {seconds_text(context.waited)}")
    return notes


def _trouble(context: RequestContext, summary: RequestSummary) -> list[str]:
    parts = []
    failures = context.failures
    tried = ", ".join(f"{failure.agent} ({failure.reason})" for failure in failures)
    if context.fan_out is not None and failures:
        named = all(failure.reason in (context.problem or "") for failure in failures)
        if not named:
            parts.append(f"{len(failures)} of {context.attempts} agents failed: {tried}")
    elif len(failures) < context.attempts and failures:  # otherwise the problem names them
        parts.append(f"tried first: {tried}")
    if summary.outcome == Outcome.CANCELLED:
        parts.append(_left(context, summary))
    elif context.problem is not None:
        parts.append(context.problem)
    if not context.is_routed and context.caller.address:
        parts.append(f"from {context.caller.address}")
    return [one_line(part, MAX_PROBLEM) for part in parts]


def _left(context: RequestContext, summary: RequestSummary) -> str:
    after = seconds_text(context.total if context.total is not None else context.clock() - context.started)
    if summary.cancelled_by == KILLED:
        return f"killed in mitmproxy after {after}"
    if context.problem is not None and context.problem.startswith(DISCONNECTED):
        return context.problem
    return f"the client left after {after}" + ("" if context.agents or not context.waited else ", while it was queued")
