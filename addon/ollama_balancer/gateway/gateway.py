"""Drives each request: queueing, dispatch, retries and silence checks.

`router` decides where it goes and `retries` what a failed attempt means; the adapter handles the connections.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.agent import Agent
from ..core.agent_records import Outcome
from ..core.leases import Lease
from ..core.priority import Priority
from ..core.registry import AgentRegistry
from ..core.stats import RequestMetrics
from ..core.tickets import QueueKey
from ..ollama.errors import Blame
from ..ollama.names import canonical_name
from ..ollama.routes import Kind, dialect_of
from .access import Access
from .adapter import Adapter, Prober
from .attempts import outcome_of
from .body_reader import Reading, RefusedBodyError, read_large
from .callers import Caller
from .context import RequestContext
from .decisions import Answer, Broadcast, Forward, Wait, error
from .headers import PRIORITY_HEADER, refusal_for_client
from .load_checks import LoadedModelChecks
from .messages import ClientRequest, Response
from .preloads import Preloads
from .refusals import answer_to, most_useful
from .retries import Retries
from .router import Router
from .tasks import run_in_background
from .timeouts import Deadlines, Timeouts
from .watchdog import Watchdog

if TYPE_CHECKING:
    from .fanout import FanOut

logger = logging.getLogger(__name__)

type Direction = Forward | FanOut | Response | None
"""The outcome of routing: one agent (see `context.address`), a fan-out, an answer to send back, or None if the client
has left.
"""


class Gateway:
    """`ending` returns whether the balancer is shutting down."""

    def __init__(
        self,
        registry: AgentRegistry,
        adapter: Adapter,
        ending: Callable[[], bool] = lambda: False,
        access: Access | None = None,
    ) -> None:
        self.registry = registry
        self.adapter = adapter
        self.ending = ending
        self.access = access or Access(registry.clock)
        self.router = Router(registry, self.access)
        self.retries = Retries(registry, self.router, lambda: self.prober)
        self.live: set[RequestContext] = set()
        """Routed requests that have not ended."""
        self.watchdog = Watchdog(registry.clock, self._loaded, self._give_up, adapter.client_is_slow)
        self.load_checks = LoadedModelChecks(self._refresh_loaded)
        registry.fleet.on_load = self.load_checks.loaded
        self.preloads = Preloads(registry.preloading)
        self.deadlines = Deadlines(registry.clock, self._expire)
        """First-byte deadlines."""
        self.request_metrics = RequestMetrics()
        self.on_end: Callable[[RequestContext], None] = lambda context: None
        """Called once with each request that has ended."""
        self.prober: Prober | None = None
        """None until the prober is loaded; hosts are not queried before."""

    @property
    def timeouts(self) -> Timeouts:
        return self.retries.timeouts

    @timeouts.setter
    def timeouts(self, timeouts: Timeouts) -> None:
        self.retries.timeouts = timeouts
        self.watchdog.response_seconds = timeouts.response

    def arrived(
        self, caller: Caller, path: str, handle: object, *, method: str = "", request_id: str = ""
    ) -> RequestContext:
        """Create the context of a request whose head has arrived."""
        return RequestContext(
            caller,
            dialect_of(path),
            self.registry.clock,
            path=path,
            method=method,
            request_id=request_id,
            handle=handle,
            on_end=self._ended,
        )

    def begin(self, context: RequestContext, pin: str | None, priority: str | None = None) -> None:
        """Start to account for a request that is to be routed.

        `pin` is the agent that it names; `priority` the class that it asks for, which may lower the caller's.
        """
        if not context.is_routed:
            context.is_routed = True
            context.started = self.registry.clock()
            context.pin = pin
            context.priority = context.caller.priority
            if priority is not None:
                try:
                    context.priority = max(context.priority, Priority.parse(priority))
                except ValueError as e:
                    context.wrong_priority = str(e)
            if context.outcome is None:
                self.live.add(context)

    def _ended(self, context: RequestContext) -> None:
        if context.is_routed:
            self.access.settle(context)
            if context.trace is not None:
                context.trace.end(context)
            self.live.discard(context)
            self.on_end(context)

    @property
    def in_flight(self) -> int:
        """Requests in flight; a fan-out counts once."""
        open_ones = [context for context in self.live if context.outcome is None]
        return sum(context.lease is not None or context.fan_out is not None for context in open_ones)

    async def route(self, context: RequestContext) -> Direction:
        """Choose an agent or an answer; the request may wait in the queue here.

        Called when the request is complete, and again after each failed attempt (`context.failure`).
        """
        request = self.adapter.request(context)
        context.path, context.head_only = request.path, request.method == "HEAD"
        reading = await self._read(request) if context.failure is None else None
        began = time.perf_counter()
        decision = self._decide(context, request, reading)
        del reading  # while the request waits, nothing holds its body unpacked
        while isinstance(decision, Wait):
            context.stop_timer()
            self.request_metrics.processing_seconds += time.perf_counter() - began
            waited = await self._wait(decision.queue_key, context)
            if waited is None:
                return None  # the client is gone
            began = time.perf_counter()
            decision = waited
        direction = self._carry_out(decision, context, request) if decision is not None else None
        self.request_metrics.processing_seconds += time.perf_counter() - began
        return direction

    async def _read(self, request: ClientRequest) -> Reading | RefusedBodyError | None:
        """Parse a large body in a thread; None for a small one, which is parsed when needed."""
        return await read_large(
            request.target,
            request.body,
            request.content_type,
            request.encoding,
            self.router.name_of,
            observed=self.router.is_observed(),
        )

    def _decide(
        self, context: RequestContext, request: ClientRequest, reading: Reading | RefusedBodyError | None
    ) -> Forward | Broadcast | Wait | Answer | None:
        """The next decision; None if the client has left."""
        if context.outcome is not None:
            return None
        if context.failure is not None:
            return self.retries.failed(context)
        if self.ending():
            return error(context.dialect, 503, "the balancer is shutting down and accepts no new requests")
        if context.wrong_priority is not None:
            return error(context.dialect, 400, f"{PRIORITY_HEADER}: {context.wrong_priority}")
        return self.router.begin(context, request, reading)

    def _carry_out(
        self, decision: Forward | Broadcast | Answer, context: RequestContext, request: ClientRequest
    ) -> Direction:
        if isinstance(decision, Forward):
            context.address = decision.agent.address
            context.start_timer(self.timeouts.response, self.deadlines)
            context.resendable = context.route is not None and context.route.kind is not Kind.NAMED
            return decision
        if isinstance(decision, Broadcast):
            context.fan_out = self._fan_out(decision, context)
            return context.fan_out
        context.stop_timer()
        useful = most_useful(context.failures) if decision.status == 502 else None
        if useful is not None:
            answer = answer_to(useful, decision.problem or "", context.dialect, head=context.head_only)
            response = refusal_for_client(answer, useful.agent)
        else:
            response = decision.response(head=context.head_only)
        context.status = response.status
        context.answer_bytes = len(response.body)
        if decision.problem is None:
            context.end(Outcome.SUCCEEDED)
            return response
        # Of the agents' answers only that nobody has the model is about the request, and about nothing else.
        own = useful is None or useful.kind is Blame.LACKS_MODEL
        context.end(outcome_of(context.status) if own else Outcome.FAILED, decision.problem)
        return response

    async def _wait(self, queue_key: QueueKey, context: RequestContext) -> Forward | Broadcast | Wait | Answer | None:
        """Wait in the queue; None if the client leaves."""
        turn = context.turn = asyncio.get_running_loop().create_future()
        granted: list[Forward] = []

        def notify(lease: Lease | None) -> None:
            # At once and not when this coroutine goes on: whoever ends the context meanwhile gives the lease back.
            if lease is not None:
                granted.append(self.router.dispatch(context, lease))
            elif not turn.done():
                turn.set_result(None)

        refused = self.router.join(context, queue_key, notify)
        if refused is not None:
            return refused
        self.adapter.waiting(context)
        timeout = self.timeouts.queue
        try:
            async with asyncio.timeout(max(0.0, timeout - context.waited)):
                await asyncio.shield(turn)
        except TimeoutError:
            if not granted and context.outcome is None:
                return self.router.queue_timed_out(context, timeout)
        except asyncio.CancelledError:
            context.end(Outcome.CANCELLED)
            raise
        if context.outcome is not None:
            return None
        return granted[0] if granted else self.router.left_queue(context)

    def _fan_out(self, decision: Broadcast, context: RequestContext) -> FanOut:
        from .fanout import FanOut

        request = self.adapter.agent_request(context)
        return FanOut(
            [self.registry.limiter.take(agent) for agent in decision.agents],
            request,
            uploads=request.body is None,
            require_all=decision.require_all,
            unavailable=decision.unavailable,
            timeouts=self.timeouts,
            clock=self.registry.clock,
            refresh=self._refresh,
            unreachable=self.registry.liveness.unreachable,
            read_client=functools.partial(self.adapter.read_client, context),
            drain_client=functools.partial(self.adapter.drain_client, context),
        )

    async def _refresh(self, agent: Agent) -> None:
        """Update the list of models of an agent."""
        if self.prober is not None:
            await self.prober.refresh(agent)

    async def _refresh_loaded(self, agent: Agent, unloading: str | None, last: bool) -> bool:
        return self.prober is None or await self.prober.refresh_loaded(agent, unloading=unloading, last=last)

    async def _loaded(self, agent: Agent) -> set[str] | None:
        return await self.prober.loaded(agent) if self.prober is not None else set()

    def unloaded(self, context: RequestContext) -> None:
        """A request that unloads its model was answered."""
        model = canonical_name(context.model or "")
        for agent in context.agents:
            self.registry.inventory.unloaded(agent, model)
            self.load_checks.watch_unload(agent, model)

    def tick(self) -> None:
        """Periodic work: expire ejections, serve the queue, detect killed flows and silent agents."""
        self.registry.expire()
        self.router.scheduler.look()
        for context in list(self.live):
            if self.adapter.is_killed(context) and context.end(Outcome.CANCELLED, "killed"):
                self.adapter.cut(context)
        for context in self.watchdog.check(list(self.live)):
            run_in_background(self.watchdog.judge(context), "silence check")
        if self.prober is not None and not self.ending():
            self.preloads.begin(self.prober)

    def _expire(self, context: RequestContext) -> None:
        """The first-byte timeout has expired: abort the attempt."""
        context.timed_out = True
        self.adapter.cut(context)

    def _give_up(self, context: RequestContext, reason: str) -> None:
        """Abort the current attempt; the next agent is tried."""
        if context.abort_reason is None:
            context.abort_reason = reason
            self.adapter.cut(context)
