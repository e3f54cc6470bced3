"""Handles answers: head, stream and the end of the request."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from mitmproxy import http
from mitmproxy.flow import Error
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

from ..api.paths import is_control_path
from ..core.agent_records import Outcome
from ..gateway.accounting import KILLED
from ..gateway.attempts import outcome_of
from ..gateway.context import RequestContext
from ..gateway.headers import by_name, for_client
from ..gateway.messages import header
from ..gateway.request_ids import REQUEST_ID_HEADER
from ..gateway.translation import observation_of
from ..ollama import origins
from ..ollama.error_trailers import error_trailer
from ..ollama.shapes import MIN_TOKENS
from ..ollama.truncation import truncated
from ..text import one_line
from .balancer import Balancer, timed
from .compat.names import Use
from .fastpath import relay
from .flows import context_of, detach, flow_of
from .headers import allow_origin, keep_alive
from .inspection.annotations import annotate, names_of
from .shared_stream import SharedStream
from .stream import BUFFERED_ANSWER
from .stream_hooks import FailedStream
from .transports import handler_of

if TYPE_CHECKING:
    from ..ollama.answer_watcher import AnswerWatcher, Verdict

logger = logging.getLogger(__name__)

MIN_STREAM_SECONDS = 0.1
"""Seconds that a stream must take before its speed can be measured."""


class Answers:
    name = "ollama-balancer-answers"

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer
        self.on_end: Callable[[str], None] = lambda client_id: None
        """Called with the id of the client of each request that has ended."""

    def cancel(self, context: RequestContext, why: str | None = None) -> None:
        """The client has left. An answer that lacks only the end of its framing counts as complete."""
        flow, watcher = flow_of(context), context.watcher
        if context.outcome is not None or flow is None:
            return
        if watcher is not None and watcher.terminal_seen and flow.response is not None:
            self._judge(context, watcher, flow.response)
        else:
            context.end(Outcome.CANCELLED, why)
        self.balancer.show(flow, context)

    @timed
    def responseheaders(self, flow: http.HTTPFlow) -> None:
        context = context_of(flow)
        response = flow.response
        if response is None:
            return
        origin = header(flow.request.headers.fields, b"origin")
        if (
            origin
            and not origins.same_origin(origin, flow.request.host_header or "")
            and self.balancer.allows(origin)
            and "access-control-allow-origin" not in response.headers
        ):
            allow_origin(response, origin)
        if flow.request.data.http_version == b"HTTP/1.0":
            keep_alive(flow.request, response)
        if context is None:
            return
        if not context.is_routed:
            response.headers[REQUEST_ID_HEADER] = context.request_id
            return
        context.stop_timer()
        agents = context.agents
        own = not agents or context.outcome is not None
        response.headers.fields = (
            *for_client(
                response.headers.fields,
                context.attempts,
                names_of(agents),
                own=own,
                request_id=context.request_id,
            ),
            *self.balancer.access.limit_headers(context.caller),
        )
        if own:
            return  # the balancer's own answer
        context.note_activity()
        context.first_byte = context.last_activity
        if context.lease is not None and response.status_code < 400:
            context.lease.began()
        headers = by_name(response.headers.fields)
        if context.reservation is None:
            context.reservation = self.balancer.budget.hold()
        watcher = context.watcher = _watcher()(
            headers.get(b"content-type", b"").lower().decode("latin-1"),
            headers.get(b"content-encoding", b"").strip().lower().decode("latin-1"),
            self.balancer.settings.body_limit if self.balancer.settings else 0,
            context.reservation.grow,
        )
        if context.fan_out is not None:
            streams = context.fan_out.streamed
        else:
            length = headers.get(b"content-length", b"")
            streams = watcher.streamed or (length.isdigit() and int(length) > BUFFERED_ANSWER)
        if streams:
            response.stream = context.pass_on = _chunk_filter(context, watcher, response)
        self.balancer.show(flow, context)

    def relay(self, stream: SharedStream) -> bool:
        """Try to relay the rest of a streamed answer; returns whether to ask again after the next chunk."""
        flow = stream.flow
        context = context_of(flow)
        handler = handler_of(flow.client_conn)
        settings, unsupported = self.balancer.settings, self.balancer.unsupported
        if (
            settings is None
            or not settings.relay
            or unsupported is None
            or Use.RELAY in unsupported
            or handler is None
            or context is None
            or context.pass_on is None
            or flow.response is None
            or flow.response.stream is not context.pass_on
            or not relay.suits(stream)
        ):
            return False
        by_selector = settings.relay_selector and Use.SELECTOR not in unsupported
        stream.relay = relay.begin(
            handler, stream, context.pass_on, _activity_callback(context, handler), by_selector=by_selector
        )
        if stream.relay is None:
            return True
        self.balancer.gateway.request_metrics.relayed += 1
        return False

    def long_answer(self, flow: http.HTTPFlow) -> None:
        """The answer is too long to be buffered: stream it from here on."""
        context, response = context_of(flow), flow.response
        if response is not None:
            watcher = context.watcher if context is not None else None
            if context and watcher:
                response.stream = context.pass_on = _chunk_filter(context, watcher, response)
            else:
                response.stream = True

    @timed
    def response(self, flow: http.HTTPFlow) -> None:
        context = detach(flow)
        if context is None:
            return
        self.on_end(flow.client_conn.id)
        response = flow.response
        if context.is_routed and response is not None:
            watcher = context.watcher
            if watcher is not None and context.outcome is None:
                if response.stream:
                    _store(response, watcher)
                elif not watcher.answer.events:
                    watcher.feed(response.raw_content or b"")
                self._judge(context, watcher, response)
            if context.outcome is None:
                context.end(Outcome.FAILED, "the balancer could not route the request")
            self._record(flow, context)
        elif response is not None and response.status_code >= 400 and not is_control_path(context.path):
            context.answer_bytes = len(response.raw_content or b"")
            self.balancer.accounting.unrouted(context, response.status_code)
        _release_filter(flow, context)
        self.balancer.flows.finished(flow)

    @timed
    def error(self, flow: http.HTTPFlow) -> None:
        context = detach(flow)
        if context is None:
            return
        self.on_end(flow.client_conn.id)
        if context.is_routed:
            self._end_failed(flow, context)
        elif not is_control_path(context.path):
            killed = flow.error is not None and flow.error.msg == Error.KILLED_MESSAGE
            self.balancer.accounting.unrouted(context, None, cancelled_by=KILLED if killed else "client")
        _release_filter(flow, context)
        self.balancer.flows.finished(flow)

    def _end_failed(self, flow: http.HTTPFlow, context: RequestContext) -> None:
        message = flow.error.msg if flow.error else "unknown error"
        gone = not flow.client_conn.connected or message == Error.KILLED_MESSAGE
        context.end(Outcome.CANCELLED if gone else Outcome.FAILED, message)
        if context.watcher is not None and flow.response is not None:
            _store(flow.response, context.watcher)
        self._record(flow, context)

    def stream_failed(self, failed: FailedStream) -> None:
        """The agent failed in the middle of its answer."""
        context = context_of(failed.flow)
        response = failed.flow.response
        if context is None or context.watcher is None or response is None or context.outcome is not None:
            return
        agent, watcher = context.agent, context.watcher
        if not response.stream:
            watcher.feed(failed.body)
            watcher.verdict()
        whole = watcher.terminal_seen if response.stream else watcher.answer.events > 0
        failed.whole = whole and "content-length" not in response.headers
        if failed.whole or not response.stream:
            return
        message = f"agent {agent.name if agent else '?'} failed in the middle of its answer: {one_line(failed.reason)}"
        if context.lease is not None:
            self.balancer.registry.ejection.failed(context.lease, message)
        context.end(Outcome.FAILED, message)
        if watcher.streamed and watcher.answer.error is None and "content-length" not in response.headers:
            trailer = error_trailer(context.dialect, watcher.content_type, watcher.partial_event, message)
            # Where a compressed stream cannot go on with them, the client's connection is cut.
            failed.error_trailer = watcher.encode_trailer(trailer) or b""
            watcher.feed_trailer(trailer)

    def _judge(self, context: RequestContext, watcher: AnswerWatcher, response: http.Response) -> None:
        """Judge the complete answer and end the request."""
        verdict = watcher.verdict()
        lease = context.lease
        status = context.status = response.status_code
        if lease is not None:
            lease.agent.heard(self.balancer.registry.clock())
        problem = verdict.error or f"status {status}"
        if 400 <= status < 500:  # whoever is at fault, the agent serves
            context.end(outcome_of(status), problem)
            return
        if status >= 500 or not verdict.whole:
            # Of a 500 that comes here the caller is to blame: the others never get as far.
            if lease is not None and status < 400:
                self.balancer.gateway.retries.midstream_error(context, problem)
            context.end(Outcome.FAILED, problem)
            return
        if speed := _speed(context, watcher, verdict):
            context.tokens_per_second = speed
        try:
            if lease is not None:
                self.balancer.registry.ejection.succeeded(lease)
                if context.demand is not None:
                    answer = observation_of(watcher.answer, context.demand, streamed=watcher.streamed)
                    self.balancer.registry.limiter.answered(lease, answer)
            agent = context.agent
            if speed and agent is not None and context.model_name is not None:
                agent.speed_measured(context.model_name, speed)
        finally:
            context.end(Outcome.SUCCEEDED)
            if context.unloads and response.status_code < 400:
                self.balancer.gateway.unloaded(context)

    def _record(self, flow: http.HTTPFlow, context: RequestContext) -> None:
        if self.balancer.is_observed():
            annotate(flow, context)
            if self.balancer.stored.on:
                self.balancer.stored.add(flow, context)


@functools.cache
def _watcher() -> Callable[[str, str, int, Callable[[int], bool] | None], AnswerWatcher]:
    """Imported with the first answer; a repeated import statement is slow, too."""
    from ..ollama.answer_watcher import watcher_of

    return watcher_of


def _activity_callback(context: RequestContext, handler: ProxyConnectionHandler) -> Callable[[], None]:
    """A callback for data from the agent."""
    register_activity: Callable[[], None] = handler.timeout_watchdog.register_activity

    def on_activity() -> None:
        register_activity()
        context.note_activity()

    return on_activity


def _chunk_filter(context: RequestContext, watcher: AnswerWatcher, response: http.Response) -> Callable[[bytes], bytes]:
    """Returns a filter that watches each chunk and appends an error event if the terminal event is missing."""
    from ..ollama.answer_watcher import NO_TERMINAL

    status = response.status_code

    def filter_chunk(chunk: bytes) -> bytes:
        if chunk:
            watcher.feed(chunk)
            context.note_activity()
            return chunk
        if watcher.streamed and status < 400:
            partial_event = watcher.partial_event
            error = watcher.verdict().error
            if error == NO_TERMINAL and "content-length" not in response.headers:
                context.problem = error
                trailer = error_trailer(context.dialect, watcher.content_type, partial_event, error)
                ending = watcher.encode_trailer(trailer)
                watcher.feed_trailer(trailer)
                if ending is None:
                    # The compressed stream has ended: only a connection that is cut tells the client.
                    flow = flow_of(context)
                    if flow is not None and flow.killable:
                        flow.kill()
                    return b""
                return ending
            if watcher.compressed and error is None and "content-length" not in response.headers:
                return watcher.missing_end
        return b""

    return filter_chunk


def _speed(context: RequestContext, watcher: AnswerWatcher, verdict: Verdict) -> float | None:
    """Tokens per second as the host reports them, or else from the arrival of the tokens."""
    if verdict.decode_seconds is not None or not watcher.streamed or context.first_byte is None:
        return verdict.tokens_per_second
    tokens, seconds = verdict.output_tokens or watcher.answer.pieces, context.clock() - context.first_byte
    return (tokens - 1) / seconds if tokens >= MIN_TOKENS and seconds >= MIN_STREAM_SECONDS else None


def _release_filter(flow: http.HTTPFlow, context: RequestContext) -> None:
    """Drop the filter from a finished flow, which may be kept for long."""
    if flow.response is not None and context.pass_on is not None and flow.response.stream is context.pass_on:
        flow.response.stream = True


def _store(response: http.Response, watcher: AnswerWatcher) -> None:
    """Store the decompressed answer in the flow."""
    response.raw_content = truncated(*watcher.captured.ends(), watcher.captured.left_out)
    if watcher.compressed:
        response.headers.pop("content-encoding", None)
