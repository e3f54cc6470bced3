"""Turns finished requests into summaries for metrics, history, dashboard and ledger."""

import collections
import time
from collections.abc import Callable
from typing import Any

from ..core.agent_records import Outcome
from ..core.history import History
from ..core.ledger import NO_KEY, TOKEN, Entry, Ledger
from ..core.recent import Recent
from ..core.registry import AgentRegistry
from ..core.stats import OTHER, RequestMetrics, RequestSummary
from ..ollama.routes import Kind, find_route
from ..text import one_line
from .access import prompt_and_output_tokens
from .attempts import outcome_of
from .context import RequestContext

KILLED = "killed"

MAX_UNCOUNTED = 64
"""Finished requests buffered before they are counted."""

CLIENT_LEFT = "cancelled"
"""The failure reason of a fan-out leg whose client disconnected."""


def summarize(context: RequestContext, registry: AgentRegistry) -> RequestSummary:
    """Summarize a finished request."""
    agent = context.agent
    model = context.model_name or ""
    watcher = context.watcher
    timings = watcher.answer.timings if watcher is not None else None
    streamed = watcher is not None and watcher.streamed
    outcome = str(context.outcome)
    cancelled_by = ""
    if context.outcome is Outcome.CANCELLED:
        gone = "client_waiting" if agent is None else "client"
        cancelled_by = KILLED if context.problem == KILLED else gone
    elif context.outcome is Outcome.FAILED and not context.attempts:
        outcome = _without_agent(context.status)
    return RequestSummary(
        agent=agent.name if agent is not None else "",
        model=model if not model or registry.inventory.has_model(model) else OTHER,
        route=context.route.path if context.route is not None else OTHER,
        outcome=outcome,
        seconds=context.total or 0.0,
        waited=context.waited or None,
        first_token=context.seconds_to_first_byte if streamed else None,
        tokens_per_second=context.tokens_per_second,
        prompt_tokens=(timings.prompt_eval_count or 0) if timings is not None else 0,
        output_tokens=(timings.eval_count or 0) if timings is not None else 0,
        cancelled_by=cancelled_by,
        failures=tuple([(each.agent, str(each.kind)) for each in context.failures if each.reason != CLIENT_LEFT]),
        status=context.status,
    )


def summarize_unrouted(path: str, status: int | None, cancelled_by: str = "") -> RequestSummary:
    """Summarize a request that ended before it was routed: `status` of the answer, or None if it was cancelled."""
    route = find_route(path)
    return RequestSummary(
        agent="",
        model="",
        route=route.path if route is not None else OTHER,
        outcome="cancelled" if status is None else _without_agent(status),
        seconds=0.0,
        cancelled_by=cancelled_by,
        status=status,
    )


def _without_agent(status: int | None) -> str:
    """How a request ends that the balancer has answered itself. A caller over a limit of its own is no failure."""
    at_fault = status is not None and (status == 429 or outcome_of(status) is Outcome.REJECTED)
    return "rejected" if at_fault else "refused"


def is_listed(context: RequestContext) -> bool:
    """Whether the request appears among the recent decisions. Merged lists do not."""
    listing = context.route is not None and context.route.kind is Kind.MERGED
    return context.outcome is not Outcome.SUCCEEDED or not (listing or not context.attempts)


def is_usage(context: RequestContext) -> bool:
    """Whether the request is one of those that limits and the ledger count: not a list or another answer of the
    balancer's own.
    """
    return context.route is not None and context.route.kind is not Kind.MERGED


def entry_of(context: RequestContext, summary: RequestSummary) -> Entry:
    """The request as the ledger has it. One that several agents had counts once."""
    caller = context.caller
    key = TOKEN if caller.authorized else NO_KEY if caller.key is None else caller.key.name
    prompt, output = prompt_and_output_tokens(context)
    seconds = max(0.0, summary.seconds - context.waited) if context.attempts else 0.0
    return Entry(key, summary.model, summary.agent, summary.outcome, prompt, output, seconds, context.waited)


def decision_of(context: RequestContext, summary: RequestSummary) -> dict[str, Any]:
    """The row of the recent decisions."""
    return {
        "agent": summary.agent or None,
        "model": one_line(context.model, 100) if context.model else None,
        "mode": context.mode,
        "why": context.why or (one_line(context.problem, 200) if context.problem else ""),
        "attempts": context.attempts,
        "outcome": summary.outcome,
        "status": summary.status,
        "ttft": summary.first_token,
    }


class Accounting:
    """Counts finished requests for metrics, history, dashboard and ledger, in batches because that is cheaper."""

    def __init__(
        self, registry: AgentRegistry, request_metrics: RequestMetrics, wall: Callable[[], float] = time.time
    ) -> None:
        self.request_metrics = request_metrics
        self.ledger = Ledger(wall)
        self.history = History()
        self.recent = Recent(registry.clock)
        self.log: Callable[[RequestContext, RequestSummary], None] | None = None
        """Called with each finished request, if there is an access log."""
        self.show: Callable[[RequestContext, RequestSummary], None] | None = None
        """Called with each finished request that is worth a line, if lines are shown."""
        self._registry = registry
        self._uncounted: collections.deque[tuple[RequestSummary, dict[str, Any] | None, Entry | None]] = (
            collections.deque()
        )
        self._revision = 0
        """Revision of the registry when removed agents were last folded into the metrics."""

    def ended(self, context: RequestContext) -> None:
        """Count a request that was to be routed."""
        summary = summarize(context, self._registry)
        listed = is_listed(context)
        decision = decision_of(context, summary) if listed else None
        self._add(summary, decision, entry_of(context, summary) if is_usage(context) else None)
        if self.log is not None:
            self.log(context, summary)
        if listed and self.show is not None:
            self.show(context, summary)

    def unrouted(self, context: RequestContext, status: int | None, cancelled_by: str = "") -> None:
        """Count a request that ended before it was routed."""
        summary = summarize_unrouted(context.path, status, cancelled_by)
        self._add(summary)
        if self.log is not None:
            self.log(context, summary)
        if self.show is not None:
            self.show(context, summary)

    def _add(self, summary: RequestSummary, decision: dict[str, Any] | None = None, entry: Entry | None = None) -> None:
        self._uncounted.append((summary, decision, entry))
        if len(self._uncounted) >= MAX_UNCOUNTED:
            self._count()

    def _count(self) -> None:
        while self._uncounted:
            summary, decision, entry = self._uncounted.popleft()
            self.request_metrics.add(summary)
            self.history.add(summary)
            self.recent.add(summary, decision)
            if entry is not None:
                self.ledger.add(entry)

    def count(self) -> None:
        """Flush the buffer; called periodically and before counts are read."""
        began = time.perf_counter()
        self._count()
        self.request_metrics.processing_seconds += time.perf_counter() - began

    def sample(self) -> None:
        """Sample the current state of the fleet; called periodically."""
        self.count()
        self.recent.sample(self._registry)
        if self._revision != self._registry.revision:
            self._revision = self._registry.revision
            self.request_metrics.fold_removed({agent.name for agent in self._registry})
