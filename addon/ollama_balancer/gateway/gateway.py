"""Takes each request to its agent: has it wait, sends it, accounts for attempts that failed, and looks after silence.

What is to be done is decided by `dispatch`; here it is done to mitmproxy's flows and connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mitmproxy import ctx, http
from mitmproxy.flow import Error
from mitmproxy.utils import asyncio_utils

from ..core.agent import Agent
from ..core.agent_records import Outcome
from ..core.leases import Lease
from ..core.queue import QueueKey
from ..core.registry import AgentRegistry
from ..core.stats import RequestMetrics
from ..mitm import http2
from ..mitm.answers import answer_of, path_of
from ..mitm.headers import AGENT_HEADER, asks_for_websocket, first_header, header, refusal_for_client, request_to_agent
from ..mitm.layer import Failure, Routing
from ..ollama.errors import Blame, classify_message
from ..ollama.names import canonical_name, is_cloud_model
from ..ollama.routes import Kind, dialect_of
from ..text import one_line
from .bodies import RefusedBodyError
from .callers import Caller
from .context import CORRECTIONS, Exchange, FailureKind, attach, exchange_of
from .deadlines import Deadlines
from .descriptors import is_ours
from .load_checks import MemoryChecks
from .outcomes import outcome_of
from .reachability import cannot_connect
from .reading import Reading, read_large
from .refusals import answer_to, most_useful, retry_after, why_refused
from .router import Answer, Dispatcher, Everywhere, Forward, Wait
from .watchdog import Watchdog

if TYPE_CHECKING:
    from ..hosts.prober import Prober
    from ..mitm.options import Settings
    from .fanout import FanOut

logger = logging.getLogger(__name__)

_PIN = AGENT_HEADER.lower().encode()


class Router:
    """`via` is this balancer's own name in the Via header; `ending` tells whether it takes no more requests.

    `settings` and `prober` are set before the first request comes.
    """

    def __init__(self, registry: AgentRegistry, via: str, ending: Callable[[], bool]) -> None:
        self.registry = registry
        self.via = via
        self.ending = ending
        self.settings: Settings | None = None
        self.prober: Prober | None = None
        self.dispatcher = Dispatcher(registry)
        self.live: set[Exchange] = set()
        """Requests that were to be routed and have not ended."""
        self.watchdog = Watchdog(registry.clock, self._loaded, self._give_up, _client_is_slow)
        self.on_wait: Callable[[Exchange], None] = lambda exchange: None
        """Told of each request that begins to wait."""
        self.memory = MemoryChecks(self._refresh_memory)
        registry.fleet.on_load = self.memory.loaded
        self.deadlines = Deadlines(registry.clock, self._expire)
        """Until when the first byte of an answer has to be there."""
        self.tally = RequestMetrics()
        self.on_end: Callable[[Exchange], None] = lambda exchange: None
        """Told of each request that has ended, once."""

    def arrived(self, flow: http.HTTPFlow, caller: Caller) -> Exchange:
        """The head of a request has come."""
        exchange = Exchange(caller, dialect_of(path_of(flow)), self.registry.clock, flow=flow, on_end=self._ended)
        attach(flow, exchange)
        return exchange

    def begin(self, flow: http.HTTPFlow) -> Exchange:
        """The request is to be routed: from here on it counts."""
        exchange = exchange_of(flow) or self.arrived(flow, Caller(flow.client_conn.id))
        if not exchange.begun:
            exchange.begun = True
            exchange.started = self.registry.clock()
            exchange.pin = header(flow.request.headers, _PIN)
            if exchange.outcome is None:
                self.live.add(exchange)
        return exchange

    def _ended(self, exchange: Exchange) -> None:
        if exchange.begun:
            self.live.discard(exchange)
            self.on_end(exchange)

    @property
    def in_flight(self) -> int:
        """Requests that agents have now; one that several have counts once."""
        open_ones = [exchange for exchange in self.live if exchange.outcome is None]
        return sum(exchange.lease is not None or exchange.fan_out is not None for exchange in open_ones)

    async def route(self, routing: Routing) -> None:
        """Choose an agent, or answer. The request may wait here for its turn."""
        exchange = self.begin(routing.flow)
        reading = await self._read(routing.flow.request) if routing.failure is None else None
        began = time.perf_counter()
        decision = self._decide(exchange, routing, reading)
        del reading  # while the request waits, nothing holds its body unpacked
        while isinstance(decision, Wait):
            exchange.stop_timer()
            self.tally.own_seconds += time.perf_counter() - began
            waited = await self._wait(decision.place, exchange)
            if waited is None:
                return  # the client is gone
            began = time.perf_counter()
            decision = waited
        if decision is not None:
            self._carry_out(decision, exchange, routing)
        self.tally.own_seconds += time.perf_counter() - began

    async def _read(self, request: http.Request) -> Reading | RefusedBodyError | None:
        """What a large body says; None: it is none, and is read when it is needed."""
        return await read_large(
            request.path,
            request.raw_content,
            header(request.headers, b"content-type") or "",
            first_header(request.headers, b"content-encoding") or "",
            self.dispatcher.name_of,
            watched=self.dispatcher.explains(),
        )

    def _decide(
        self, exchange: Exchange, routing: Routing, reading: Reading | RefusedBodyError | None
    ) -> Forward | Everywhere | Wait | Answer | None:
        """What is to be done with the request now; None: nothing, as nobody wants its answer."""
        if exchange.outcome is not None:
            return None
        if routing.failure is None:
            request = routing.flow.request
            if self.ending():
                return self.dispatcher.error(exchange.dialect, 503, "the balancer is ending: it takes no new requests")
            return self.dispatcher.begin(
                exchange,
                request.method,
                request.path,
                request.raw_content,
                header(request.headers, b"content-type") or "",
                encoding=first_header(request.headers, b"content-encoding") or "",
                websocket=request.method == "GET" and asks_for_websocket(request),
                reading=reading,
            )
        return self._account(exchange, routing)

    def _carry_out(self, decision: Forward | Everywhere | Answer, exchange: Exchange, routing: Routing) -> None:
        flow = routing.flow
        if isinstance(decision, Forward):
            self._send_to(decision, exchange, routing)
        elif isinstance(decision, Everywhere):
            routing.fan_out = exchange.fan_out = self._fan_out(decision, exchange, flow)
        else:
            exchange.stop_timer()
            useful = most_useful(exchange.failures) if decision.status == 502 else None
            if useful is not None:
                flow.response = answer_to(flow, useful, decision.problem or "")
                refusal_for_client(flow.response.headers)
                flow.response.headers[AGENT_HEADER] = useful.agent
            else:
                flow.response = answer_of(flow, decision)
            exchange.status = flow.response.status_code
            if decision.problem is not None:
                # Of the agents' answers only that nobody has the model is about the request, and about nothing else.
                own = useful is None or useful.kind is Blame.LACKS_MODEL
                exchange.end(outcome_of(exchange.status) if own else Outcome.FAILED, decision.problem)
                logger.info("%s", one_line(f"{flow.request.method} {path_of(flow)}: {decision.problem}", 500))
            else:
                exchange.end(Outcome.SUCCEEDED)

    async def _wait(self, place: QueueKey, exchange: Exchange) -> Forward | Everywhere | Wait | Answer | None:
        """Wait in the line for an agent; None if the client leaves."""
        assert self.settings
        turn = exchange.turn = asyncio.get_running_loop().create_future()
        granted: list[Forward] = []

        def notify(lease: Lease | None) -> None:
            # At once and not when this coroutine goes on: whoever ends the exchange meanwhile gives the lease back.
            if lease is not None:
                granted.append(self.dispatcher.granted(exchange, lease))
            elif not turn.done():
                turn.set_result(None)

        refused = self.dispatcher.join(exchange, place, notify)
        if refused is not None:
            return refused
        self.on_wait(exchange)
        timeout = self.settings.queue_timeout
        try:
            async with asyncio.timeout(max(0.0, timeout - exchange.waited)):
                await asyncio.shield(turn)
        except TimeoutError:
            if not granted and exchange.outcome is None:
                return self.dispatcher.waited_too_long(exchange, timeout)
        except asyncio.CancelledError:
            exchange.end(Outcome.CANCELLED)
            raise
        if exchange.outcome is not None:
            return None
        return granted[0] if granted else self.dispatcher.deserted(exchange)

    def _account(self, exchange: Exchange, routing: Routing) -> Forward | Wait | Answer:
        failure = routing.failure
        assert failure
        if not failure.connected and is_ours(failure.reason):
            return self.dispatcher.own_trouble(exchange, failure.reason)
        agent = exchange.agent
        if failure.blame is not None and failure.refusal is not None:
            status = failure.refusal.status_code
            reason = why_refused(failure.blame, status, path_of(routing.flow)[:200])
            self._blame(exchange, failure.blame, reason, retry_after(failure.refusal))
            exchange.fail_attempt(reason, failure.blame, failure.refusal)
        else:
            kind, reason = self._without_answer(failure, routing)
            if exchange.lease is not None:
                self.registry.ejection.failed(exchange.lease, reason)
            exchange.fail_attempt(reason, kind)
        if agent is not None and failure.blame not in CORRECTIONS:
            logger.warning("Agent %s failed before its first byte: %s.", agent.name, reason)
            if not failure.connected:
                self.registry.liveness.unreachable(agent, cannot_connect(agent.address, reason))
        if not failure.retriable or routing.expired:
            return self.dispatcher.gave_up(exchange)
        return self.dispatcher.again(exchange)

    def _without_answer(self, failure: Failure, routing: Routing) -> tuple[FailureKind, str]:
        """What kind of failure it was, and why."""
        assert self.settings
        reason = one_line(failure.reason)
        kind = FailureKind.BROKEN if failure.connected else FailureKind.CONNECT
        if routing.expired:
            kind, reason = FailureKind.TIMEOUT, f"no first byte within {self.settings.response_timeout} s"
        elif not failure.connected and reason == "timeout":
            kind, reason = FailureKind.TIMEOUT, f"not reached within {self.settings.connect_timeout} s"
        if routing.given_up is not None:
            kind, reason, routing.given_up = FailureKind.TIMEOUT, routing.given_up, None
        return kind, reason

    def heard_error(self, exchange: Exchange, message: str) -> None:
        """The agent has said so in the middle of an answer that had begun as a success; the lease is still held."""
        self._blame(exchange, classify_message(message), one_line(message, 200), retry_after(None))

    def _blame(self, exchange: Exchange, blame: Blame, reason: str, busy_seconds: float) -> None:
        """Note what an answer has told of its agent, before the request lets go of it: others may wait for that."""
        lease, registry = exchange.lease, self.registry
        if lease is None:
            return
        agent, model, route = lease.agent, exchange.model, exchange.route
        if blame is Blame.HOST_CANNOT and model is not None and is_cloud_model(model):
            blame = Blame.CANNOT_LOAD  # the trouble is elsewhere
        match blame:
            case Blame.HOST_CANNOT:
                registry.ejection.failed(lease, reason)
            case Blame.HOST_BUSY if lease.model is not None:
                registry.limiter.busy(agent, lease.model, busy_seconds)
            case Blame.HOST_REFUSES:
                self._refused(agent, exchange, reason)
            case Blame.LACKS_MODEL if exchange.model_name is not None:
                self._correct(agent, exchange.model_name)
            case Blame.LACKS_ROUTE if route is not None:
                logger.info("Agent %s does not have %s: it gets no such requests for a while.", agent.name, route.path)
                registry.avoidance.lacks_route(agent, route.path)
            case Blame.CANNOT_LOAD if exchange.demand is not None:
                registry.avoidance.cannot_load(agent, exchange.demand.model, exchange.demand.runner)

    def _refused(self, agent: Agent, exchange: Exchange, reason: str) -> None:
        """Not let in: for a while the agent is not used, unless only this caller's credentials were not good enough."""
        if exchange.caller.credentials:
            if exchange.route is not None:
                self.registry.avoidance.refuses(agent, exchange.route.path)
            if self.prober is not None:
                asyncio_utils.create_task(self.prober.probe(agent), name="access check", keep_ref=True)
            return
        self.registry.liveness.refuses(agent, reason)

    def _send_to(self, forward: Forward, exchange: Exchange, routing: Routing) -> None:
        routing.address = forward.agent.address
        routing.credentials, routing.target = exchange.caller.credentials, exchange.caller.target
        assert self.settings
        exchange.routing = routing
        exchange.start_timer(self.settings.response_timeout, self.deadlines)
        route = exchange.route
        routing.may_repeat = route is not None and route.kind is not Kind.NAMED
        routing.route = route
        routing.routed = True

    def _correct(self, agent: Agent, model: str) -> None:
        """The agent says that it lacks the model: it is not asked for it again until it lists it."""
        logger.info("Agent %s does not have model %s: its list is corrected.", agent.name, one_line(model))
        self.registry.inventory.forget_model(agent, model)
        asyncio_utils.create_task(self._refresh(agent), name="inventory", keep_ref=True)

    def _fan_out(self, decision: Everywhere, exchange: Exchange, flow: http.HTTPFlow) -> FanOut:
        from .fanout import FanOut, Timeouts

        assert self.settings
        request = flow.request
        asked = request_to_agent(request, self.via, exchange.caller.credentials, target=exchange.caller.target)
        asked.headers["Accept-Encoding"] = "identity"  # their answers are read and made into one
        return FanOut(
            [self.registry.limiter.take(agent) for agent in decision.agents],
            asked,
            body=request.raw_content,
            uploads=bool(request.stream),
            by_all=decision.by_all,
            away=decision.away,
            timeouts=Timeouts(self.settings.connect_timeout, self.settings.response_timeout),
            clock=self.registry.clock,
            refresh=self._refresh,
            unreachable=self.registry.liveness.unreachable,
            read_client=functools.partial(_read_client, flow.client_conn.id),
            drain_client=functools.partial(drain_client, flow.client_conn.id),
        )

    async def _refresh(self, agent: Agent) -> None:
        """See what models the agent has now."""
        if self.prober is not None:
            await self.prober.refresh(agent)

    async def _refresh_memory(self, agent: Agent, unloading: str | None, last: bool) -> bool:
        return self.prober is None or await self.prober.refresh_memory(agent, unloading=unloading, last=last)

    def unloaded(self, exchange: Exchange) -> None:
        """A request has been answered after which its model is to be in memory no more."""
        model = canonical_name(exchange.model or "")
        for agent in exchange.agents:
            self.registry.inventory.unloaded(agent, model)
            self.memory.unloads(agent, model)

    def look(self) -> None:
        """Time has gone by: ejected agents become due, silent ones are found out."""
        self.registry.expire()
        self.dispatcher.scheduler.look()
        for exchange in list(self.live):
            # Nothing else tells of a flow that a person has killed.
            if exchange.flow is not None and _is_killed(exchange.flow):
                self._drop(exchange)
        for exchange in self.watchdog.look(list(self.live)):
            asyncio_utils.create_task(self.watchdog.judge(exchange), name="silence check", keep_ref=True)

    def _drop(self, exchange: Exchange) -> None:
        """Nobody wants its answer any more."""
        if exchange.end(Outcome.CANCELLED, "killed"):
            self.cut(exchange)

    def cut(self, exchange: Exchange) -> None:
        """Close the connection on which its answer comes."""
        if exchange.routing is not None:
            self._cut(exchange.routing)

    async def _loaded(self, agent: Agent) -> set[str] | None:
        return await self.prober.loaded(agent) if self.prober is not None else set()

    def _expire(self, routing: Routing) -> None:
        """No first byte in time: give up the attempt that runs now."""
        routing.expired = True
        self._cut(routing)

    def _give_up(self, exchange: Exchange, reason: str) -> None:
        """The attempt that runs now comes to nothing: have the layer try the next."""
        if exchange.routing is not None and exchange.routing.given_up is None:
            exchange.routing.given_up = reason
            self._cut(exchange.routing)

    def _cut(self, routing: Routing) -> None:
        """Close the connection on which the answer is waited for."""
        flow = routing.flow
        handler = ctx.master.addons.get("proxyserver").connections.get(flow.client_conn.id)
        if handler is None:
            return
        # One that is still being connected has its own, shorter limit, and the layer looks at `expired` after it.
        io = handler.transports.get(flow.server_conn)
        if io is not None and io.handler is not None:
            io.handler.cancel("timeout")


def _is_killed(flow: http.HTTPFlow) -> bool:
    return flow.error is not None and flow.error.msg == Error.KILLED_MESSAGE


def _read_client(client_id: str, on: bool) -> None:
    """Go on reading from a client, or let it wait."""
    transport = getattr(_client_writer(client_id), "transport", None)
    if transport is not None and not transport.is_closing():
        if on:
            transport.resume_reading()
        else:
            transport.pause_reading()


def abort_client(client_id: str) -> None:
    """Cut the connection, whatever the client still has to take."""
    transport = getattr(_client_writer(client_id), "transport", None)
    if transport is not None:
        transport.abort()


async def drain_client(client_id: str) -> None:
    """Wait until the client has taken most of what was sent to it."""
    writer = _client_writer(client_id)
    if writer is not None:
        with contextlib.suppress(OSError):
            await writer.drain()


async def drain_agent(flow: http.HTTPFlow) -> None:
    """Wait until the agent has taken most of what was sent to it, and in any case until others have had a turn."""
    await asyncio.sleep(0)
    handler = ctx.master.addons.get("proxyserver").connections.get(flow.client_conn.id)
    io = handler.transports.get(flow.server_conn) if handler is not None else None
    if io is not None and io.writer is not None:
        with contextlib.suppress(OSError):
            await io.writer.drain()


def _client_is_slow(exchange: Exchange) -> bool:
    """Whether there is something that the client has yet to take."""
    client_id, flow = exchange.caller.client_id, exchange.flow
    if flow is not None and http2.holds_up(client_id, flow.server_conn):
        return True
    writer = _client_writer(client_id)
    return isinstance(writer, asyncio.StreamWriter) and writer.transport.get_write_buffer_size() > 0


def _client_writer(client_id: str) -> asyncio.StreamWriter | None:
    handler = ctx.master.addons.get("proxyserver").connections.get(client_id)
    io = handler.transports.get(handler.client) if handler is not None else None
    return io.writer if io is not None else None
