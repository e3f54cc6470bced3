"""The request side of a stream, and answers of the balancer or of several agents.

The body is buffered within `balancer_memory`; a fan-out whose body is too large for that is streamed.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, cast

from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    DropStream,
    HttpEvent,
    HttpRequestHook,
    HttpResponseHeadersHook,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    SendHttp,
)

from ..gateway.context import RequestContext
from ..gateway.messages import header
from .body_buffers import BodyBuffer
from .compat.mitmproxy_names import HttpStreamBase
from .flows import context_of, declared_size, to_mitmproxy
from .host_header import set_destination
from .stream_hooks import AdvanceHook, RouteRequestHook, continue_later

if TYPE_CHECKING:
    from ..gateway.fanout import FanOut
    from ..gateway.memory_budget import Reservation
    from .fastpath.relay import StreamRelay
    from .layer import BalancedHttpLayer

NAMED_HOST = "balancer_named_host"
"""Attribute of a request with the host that its client named; None for clients that use the balancer as an HTTP proxy,
which a web page cannot.
"""

UPLOAD_SECONDS = 0.05
"""Seconds between two checks for an early answer to an upload."""


class SharedStream(HttpStreamBase):
    """The part of a stream that does not depend on a single agent."""

    ours: RequestContext | None = None
    """The context, once a route was requested."""
    relay: StreamRelay | None = None
    """Relays the answer past this layer."""
    may_relay = True
    """Whether to try the relay after the next chunk."""
    reservation: Reservation | None = None
    """Memory reserved for the request body."""
    answer_reservation: Reservation | None = None

    def __init__(self, context: Context, stream_id: int) -> None:
        super().__init__(context, stream_id)
        self.request_body_buf = BodyBuffer()  # type: ignore[assignment]

    @functools.cached_property
    def balanced_layer(self) -> BalancedHttpLayer:
        return cast("BalancedHttpLayer", self.context.layers[self.context.layers.index(self) - 1])

    def on_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        commands_of_event = self._handle(event)
        balanced_layer = self.balanced_layer
        reply = None
        while True:
            try:
                command = commands_of_event.send(reply)
            except StopIteration:
                return
            if type(command) is DropStream:
                self.release()
            if isinstance(command, commands.StartHook) and balanced_layer.run_at_once(command):
                reply = None
            else:
                reply = yield command

    def check_killed(self, emit_error_hook: bool) -> layer.CommandGenerator[bool]:
        killed = yield from super().check_killed(emit_error_hook)
        if killed:
            yield DropStream(self.stream_id)  # over HTTP/2 the connection goes on, and would keep it
        return killed

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:
        invalid = yield from super().check_invalid(request)
        if invalid:
            yield DropStream(self.stream_id)
        return invalid

    def leave(self) -> None:
        """The client has cancelled the request."""
        if self.relay is not None:
            self.relay.stop()  # what it has passed on and not shown yet may hold the answer's end
        if self.client_state != self.state_wait_for_request_headers:
            self.balanced_layer.client_gone(self.flow)

    def _handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Wakeup):
            if self.client_state == self.state_upload:
                yield from self.poll_upload()
        else:
            yield from super().on_event(event)

    def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
        request = event.request
        is_proxy_request = request.authority and request.data.http_version.startswith(b"HTTP/1")
        vars(request)[NAMED_HOST] = (
            None if is_proxy_request else header(request.headers.fields, b"host") or request.authority
        )
        set_destination(event.request, self.context.client)
        yield from super().state_wait_for_request_headers(event)
        if (
            self.client_state == self.state_consume_request_body
            and self.flow.response is not None
            and declared_size(self.flow) > self.balanced_layer.body_limit(self.flow)
        ):
            yield from self.answer_before_body()

    def answer_before_body(self) -> layer.CommandGenerator[None]:
        """Send the answer that the flow has; what is left of the body is swallowed."""
        self.client_state = self.state_done
        yield from self.answer()
        self.client_state = self.state_errored

    def state_consume_request_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, RequestData):
            limit = self.balanced_layer.body_limit(self.flow)
            size = len(self.request_body_buf) + len(event.data)
            if self.reservation is None:
                self.reservation = self.balanced_layer.budget.hold()
            if size > limit or not self.reservation.grow(size):
                self.release()
                if self.flow.response is None:
                    too_large = size > limit
                    layer = self.balanced_layer
                    self.flow.response = (
                        layer.body_too_large(self.flow, limit) if too_large else layer.no_memory(self.flow)
                    )
                yield from self.answer_before_body()
                return
        yield from super().state_consume_request_body(event)

    def release(self) -> None:
        """Release the memory of both bodies."""
        self.request_body_buf.clear()
        for reservation in (self.reservation, self.answer_reservation):
            if reservation is not None:
                reservation.release()

    def ask_for_route(self) -> layer.CommandGenerator[None]:
        if self.ours is not None:
            self.ours.address = None  # should the hook fail, it goes nowhere
        yield RouteRequestHook(self.flow)
        self.ours = context_of(self.flow)

    def start_request_stream(self) -> layer.CommandGenerator[None]:
        """Stream the body to several agents, as it is too large to buffer."""
        yield from self.ask_for_route()
        if (yield from self.check_killed(True)):
            return
        if self.ours is not None and self.ours.fan_out is not None:
            self.client_state = self.state_upload
            yield commands.RequestWakeup(UPLOAD_SECONDS)
            return
        if self.flow.response is None:
            self.flow.response = self.balanced_layer.internal_error(self.flow)
        yield from self.answer_before_body()

    def state_upload(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        assert self.ours and self.ours.fan_out
        if isinstance(event, RequestData):
            self.ours.fan_out.feed(event.data)
        elif isinstance(event, RequestEndOfMessage):
            self.ours.fan_out.feed(b"")
            self.flow.request.timestamp_end = time.time()
            self.client_state = self.state_done
            yield HttpRequestHook(self.flow)
            if not (yield from self.check_killed(True)):
                yield from self.pass_on(self.ours.fan_out)

    def poll_upload(self) -> layer.CommandGenerator[None]:
        """The agents may have answered early, or ask a client that waits for 100-continue for its body."""
        assert self.ours and self.ours.fan_out
        if not self.flow.live:
            return  # it was reset meanwhile
        fan_out = self.ours.fan_out
        # Over HTTP/2 an answer ends the stream: there are clients that then wait for ever when their body has gone out.
        early = fan_out.finished and not self.flow.request.is_http2
        if early:
            self.client_state = self.state_done
            yield from self.pass_on(fan_out, early=True)
            self.client_state = self.state_errored  # what is left of the body is swallowed
            return
        if self.flow.request.stream is continue_later and (fan_out.wanted or fan_out.finished):
            self.flow.request.stream = True
            proceed = http.Response.make(100)
            proceed.headers.clear()
            yield SendHttp(ResponseHeaders(self.stream_id, proceed), self.context.client)
        yield commands.RequestWakeup(UPLOAD_SECONDS)

    def pass_on(self, fan_out: FanOut, *, early: bool = False) -> layer.CommandGenerator[None]:
        """Send the combined answer of several agents; `early`: before the request body is complete."""
        yield AdvanceHook(fan_out)
        if (yield from self.check_killed(True)):
            return
        answer = fan_out.response
        self.flow.response = to_mitmproxy(answer) if answer else self.balanced_layer.internal_error(self.flow)
        if early:
            # A client that sends no more of its body must not send its next request in the place of it.
            self.flow.response.headers["Connection"] = "close"
        if not fan_out.streamed:
            yield from self.answer()
            return
        self.flow.response.timestamp_start = time.time()
        yield HttpResponseHeadersHook(self.flow)
        if (yield from self.check_killed(True)):
            return
        yield from self.start_response_stream()
        backlogged = self.balanced_layer.backlogged
        if backlogged is not None:
            fan_out.room = functools.partial(backlogged.connection.room, self.stream_id)
        while True:
            fan_out.chunk = b""
            yield AdvanceHook(fan_out)
            if (yield from self.check_killed(True)):
                return
            if not fan_out.chunk:
                break
            yield from self.state_stream_response_body(ResponseData(self.stream_id, fan_out.chunk))
        yield from self.state_stream_response_body(ResponseEndOfMessage(self.stream_id))

    def answer(self) -> layer.CommandGenerator[None]:
        """Send the response that the addon has set."""
        assert self.flow.response
        self.flow.response.timestamp_start = time.time()
        yield HttpResponseHeadersHook(self.flow)
        if (yield from self.check_killed(True)):
            return
        yield from self.send_response()

    def state_stream_response_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from super().state_stream_response_body(event)
        if isinstance(event, ResponseData):
            if self.may_relay:
                self.balanced_layer.streaming = self
            if self.balanced_layer.backlogged is not None:
                self.balanced_layer.backlogged.check(self.stream_id, self.context.server)
