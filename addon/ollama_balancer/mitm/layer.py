"""mitmproxy's HTTP layer, except that each request asks for its agent just before it is sent.

The route is asked for when the request is complete and no longer held, so that a person who edits a prompt holds no
agent, and again when an agent fails before the first byte of its answer. What an agent that was given up still sends
must not reach the client: its connection is taken out of the layer's books at once, and later events of a connection
that is not in the books are dropped.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mitmproxy import flow, http
from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    Http1Server,
    Http2Server,
    HttpErrorHook,
    HttpEvent,
    HTTPMode,
    HttpRequestHook,
    HttpResponseHeadersHook,
    HttpResponseHook,
    HttpStream,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
    SendHttp,
    StreamId,
)

from ..gateway.attempts import Failure
from ..gateway.context import RequestContext
from ..gateway.messages import Response, header
from ..gateway.refusals import blame_of, for_caller
from ..ollama.errors import Blame
from .body_buffers import BodyBuffer
from .compat.mitmproxy_names import HttpLayerBase, HttpStreamBase
from .flows import context_of, from_mitmproxy, to_mitmproxy
from .headers import request_to_agent
from .host_header import set_destination
from .http2 import BoundedH2Connection, HeldUp

if TYPE_CHECKING:
    from ..gateway.fanout import FanOut
    from ..gateway.memory_budget import Held, MemoryBudget
    from .fastpath.relay import Relay

FROM_AGENTS = (ResponseHeaders, ResponseData, ResponseTrailers, ResponseEndOfMessage, ResponseProtocolError)

NAMED_HOST = "balancer_named_host"
"""Holds, on a request, the host that its client has named, whatever mitmproxy makes of it; None where the client uses
the balancer as its HTTP proxy and names the whole URL, as no page can."""

BODY_PIECE = 256 * 1024
"""Bytes of a request's body that are given to its agent's connection at once."""

BUFFERED_ANSWER = 4 * 1024 * 1024
"""An answer that is no stream is held until it is whole, up to this many bytes, so that a failure is a clean 502."""

REFUSAL_BYTES = 64 * 1024
"""How much of the body of an answer that is no success is read, to see whose fault it is."""

REFUSAL_SECONDS = 5.0
"""How long that may take; the request is better off elsewhere."""

IDLE_CONNECTIONS = 8
"""Connections to other agents that are kept for a client that goes on asking: it may be sent back to them."""

UPLOAD_SECONDS = 0.05
"""Between two looks at what the agents say to a body that is still to come."""

STALE_SECONDS = 1.0
"""An idle connection that the agent had closed shows within a round trip of sending; later, the agent has failed."""


def continue_later(chunk: bytes) -> bytes:
    """The `stream` of a request whose client waits for 100-continue: it is sent when an agent asks for the body."""
    return chunk


@dataclass
class RouteRequestHook(commands.StartHook):
    """The request is complete (or its body is to be streamed) and about to be sent: to which agent?

    The addon has the flow's context say where it goes, or sets the flow's response.
    """

    flow: http.HTTPFlow
    blocking = True


@dataclass
class SendingHook(commands.StartHook):
    """A piece of a large request has been sent: the next one follows when the agent has taken most of it."""

    flow: http.HTTPFlow
    blocking = True


@dataclass
class LongAnswerHook(commands.StartHook):
    """An answer that was to be held turns out to be long: the addon sets its `stream`."""

    flow: http.HTTPFlow
    blocking = True


@dataclass
class AdvanceHook(commands.StartHook):
    """Wait for the next part of several agents' answer."""

    fan_out: FanOut
    blocking = True


@dataclass
class StreamFailedHook(commands.StartHook):
    """The agent failed in the middle of its answer.

    The addon says whether the answer is `whole` nevertheless, or may give the client last words in `last_words`.
    """

    failed: FailedStream
    blocking = True


@dataclass(eq=False)
class FailedStream:
    flow: http.HTTPFlow
    reason: str
    body: bytes = b""
    """What has come of an answer that was to be held until it is whole."""
    whole: bool = False
    """All has come but the end of the body's framing."""
    last_words: bytes = b""


class BalancedStream(HttpStreamBase):
    """One request and its answer."""

    ours: RequestContext | None = None
    """The request's context, once a route was asked for."""
    refusal: http.Response | None = None
    refusal_head: ResponseHeaders | None = None
    refusal_limit: commands.RequestWakeup | None = None
    reused_connection = False
    sent_at = 0.0
    relay: Relay | None = None
    """Takes the answer past this layer."""
    held: Held | None = None
    """The memory that its request's body takes."""
    held_answer: Held | None = None
    may_relay = True
    """Whether it is of use to ask for that after the next chunk."""

    def __init__(self, context: Context, stream_id: int) -> None:
        super().__init__(context, stream_id)
        self.request_body_buf = BodyBuffer()  # type: ignore[assignment]

    @functools.cached_property
    def balanced_layer(self) -> BalancedHttpLayer:
        parent = self.context.layers[self.context.layers.index(self) - 1]
        assert isinstance(parent, BalancedHttpLayer)
        return parent

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
                self.let_go()
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
        """The client wants no more of this request."""
        if self.relay is not None:
            self.relay.stop()  # what it has passed on and not shown yet may hold the answer's end
        if self.client_state != self.state_wait_for_request_headers:
            self.balanced_layer.client_gone(self.flow)

    def _handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Wakeup):
            if event.command is self.refusal_limit and self.server_state == self.state_consume_refusal:
                yield from self.sort_refusal()
            elif self.client_state == self.state_upload:
                yield from self.look_at_upload()
        else:
            yield from super().on_event(event)

    # The request

    def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
        request = event.request
        proxied = request.authority and request.data.http_version.startswith(b"HTTP/1")
        vars(request)[NAMED_HOST] = None if proxied else header(request.headers.fields, b"host") or request.authority
        set_destination(event.request, self.context.client)
        yield from super().state_wait_for_request_headers(event)

    def state_consume_request_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, RequestData):
            limit = self.balanced_layer.body_limit(self.flow)
            size = len(self.request_body_buf) + len(event.data)
            if self.held is None:
                self.held = self.balanced_layer.budget.hold()
            if size > limit or not self.held.grow(size):
                self.let_go()
                self.client_state = self.state_done
                if self.flow.response is None:
                    above = size > limit
                    layer = self.balanced_layer
                    self.flow.response = layer.body_too_large(self.flow, limit) if above else layer.no_memory(self.flow)
                yield from self.answer()
                self.client_state = self.state_errored  # what is left of the body is swallowed
                return
        yield from super().state_consume_request_body(event)

    def let_go(self) -> None:
        """Nothing of its bodies is of use any more."""
        self.request_body_buf.clear()
        for held in (self.held, self.held_answer):
            if held is not None:
                held.release()

    def start_request_stream(self) -> layer.CommandGenerator[None]:
        """The body is for several agents and too large to keep: it goes to them while it comes."""
        yield from self.ask_for_route()
        if (yield from self.check_killed(True)):
            return
        if self.ours is not None and self.ours.fan_out is not None:
            self.client_state = self.state_upload
            yield commands.RequestWakeup(UPLOAD_SECONDS)
            return
        if self.flow.response is None:
            self.flow.response = self.balanced_layer.internal_error(self.flow)
        self.client_state = self.state_done
        yield from self.answer()
        self.client_state = self.state_errored  # the body is swallowed

    def ask_for_route(self) -> layer.CommandGenerator[None]:
        if self.ours is not None:
            self.ours.address = None  # should the hook fail, it goes nowhere
        yield RouteRequestHook(self.flow)
        self.ours = context_of(self.flow)

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

    def look_at_upload(self) -> layer.CommandGenerator[None]:
        """The agents may have answered without the body, or ask for it of a client that waits for that."""
        assert self.ours and self.ours.fan_out
        if not self.flow.live:
            return  # it was reset meanwhile
        fan_out = self.ours.fan_out
        # Over HTTP/2 an answer ends the stream: there are clients that then wait for ever when their body has gone out.
        early = fan_out.over and not self.flow.request.is_http2
        if early:
            self.client_state = self.state_done
            yield from self.pass_on(fan_out, early=True)
            self.client_state = self.state_errored  # what is left of the body is swallowed
            return
        if self.flow.request.stream is continue_later and (fan_out.wanted or fan_out.over):
            self.flow.request.stream = True
            proceed = http.Response.make(100)
            proceed.headers.clear()
            yield SendHttp(ResponseHeaders(self.stream_id, proceed), self.context.client)
        yield commands.RequestWakeup(UPLOAD_SECONDS)

    def pass_on(self, fan_out: FanOut, *, early: bool = False) -> layer.CommandGenerator[None]:
        """Give the client what several agents answer; `early`: before its body has come to its end."""
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
        held_up = self.balanced_layer.held_up
        if held_up is not None:
            fan_out.room = functools.partial(held_up.connection.room, self.stream_id)
        while True:
            fan_out.chunk = b""
            yield AdvanceHook(fan_out)
            if (yield from self.check_killed(True)):
                return
            if not fan_out.chunk:
                break
            yield from self.state_stream_response_body(ResponseData(self.stream_id, fan_out.chunk))
        yield from self.state_stream_response_body(ResponseEndOfMessage(self.stream_id))

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        """Have an agent get the request; False: mitmproxy, which calls this, has nothing to send."""
        if (yield from self.reach_agent()):
            yield from self.send_request()
        return False

    def reach_agent(self) -> layer.CommandGenerator[bool]:
        """Ask for an agent and connect to it, until one is reached or the flow is answered otherwise."""
        while True:
            yield from self.ask_for_route()
            if (yield from self.check_killed(True)):
                return False
            ours = self.ours
            if ours is not None and ours.fan_out is not None:
                yield from self.pass_on(ours.fan_out)
                return False
            if ours is None or ours.address is None:
                if self.flow.response is None:
                    # The hook raised: mitmproxy logs that and goes on. An unrouted request must not.
                    self.flow.response = self.balanced_layer.internal_error(self.flow)
                yield from self.answer()
                return False
            err = yield from self.connect()
            if (yield from self.check_killed(True)):
                return False
            if err is None and not ours.expired and ours.given_up is None:
                return True
            ours.failure = Failure(err or "timeout", connected=err is None, retriable=True)

    def connect(self) -> layer.CommandGenerator[str | None]:
        """Connect to where the request is to go. Returns an error, or None when connected."""
        assert self.ours and self.ours.address
        address = (self.ours.address.host, self.ours.address.port)
        yield from self.balanced_layer.close_idle(keep=address)
        connection, err = yield GetHttpConnection(address, False, None, "tcp")
        if err is not None:
            self.balanced_layer.forget_failed(address)
            return str(err)
        self.reused_connection = connection in self.balanced_layer.used
        self.balanced_layer.used.add(connection)
        self.context.server = self.flow.server_conn = connection
        return None

    def send_request(self) -> layer.CommandGenerator[None]:
        """Send the whole request, which is at hand, to the agent now connected."""
        self.sent_at = time.monotonic()
        request, server = self.flow.request, self.context.server
        content = request.raw_content
        yield SendHttp(RequestHeaders(self.stream_id, request, not content), server)
        for at in range(0, len(content or b""), BODY_PIECE):
            if at:
                # All at once would keep everybody else waiting. What comes meanwhile is dealt with after it.
                yield SendingHook(self.flow)
                if (yield from self.check_killed(True)):
                    yield from self.balanced_layer.abandon(server)
                    return
                if server not in self.balanced_layer.connections:
                    return
            assert content is not None
            yield SendHttp(RequestData(self.stream_id, content[at : at + BODY_PIECE]), server)
        yield SendHttp(RequestEndOfMessage(self.stream_id), server)

    # The answer

    def answer(self) -> layer.CommandGenerator[None]:
        """Send the response that the addon has set."""
        assert self.flow.response
        self.flow.response.timestamp_start = time.time()
        yield HttpResponseHeadersHook(self.flow)
        if (yield from self.check_killed(True)):
            return
        yield from self.send_response()

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> layer.CommandGenerator[None]:
        status = event.response.status_code
        if self.ours is not None and self.client_state == self.state_done:
            if status < 200:
                # It changes the protocol, which nobody has asked for; others do not come here.
                yield from self.balanced_layer.abandon(self.context.server)
                yield from self.try_next(
                    Failure(f"status {status}, which is no answer", connected=True, retriable=True)
                )
                return
            if status >= 300 and status != 304:
                self.refusal = event.response
                self.refusal_head = event
                self.server_state = self.state_consume_refusal
                self.refusal_limit = commands.RequestWakeup(REFUSAL_SECONDS)
                yield self.refusal_limit
                return
        yield from super().state_wait_for_response_headers(event)

    def state_consume_response_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self.ours is not None:
            self.ours.heard()
        yield from super().state_consume_response_body(event)
        still_holding = self.server_state == self.state_consume_response_body
        if still_holding and isinstance(event, ResponseData) and not self.may_hold(len(self.response_body_buf)):
            # More than is worth to be held: what is there goes out, and the rest as it comes.
            held = bytes(self.response_body_buf)
            self.response_body_buf.clear()
            yield LongAnswerHook(self.flow)
            yield from self.start_response_stream()
            yield from self.state_stream_response_body(ResponseData(self.stream_id, held))

    def may_hold(self, size: int) -> bool:
        """Whether so much of an answer may be held."""
        if self.held_answer is None:
            self.held_answer = self.balanced_layer.budget.hold()
        return size <= BUFFERED_ANSWER and self.held_answer.grow(size)

    def state_stream_response_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from super().state_stream_response_body(event)
        if isinstance(event, ResponseData):
            if self.may_relay:
                self.balanced_layer.streaming = self
            if self.balanced_layer.held_up is not None:
                self.balanced_layer.held_up.look(self.stream_id, self.context.server)

    def state_consume_refusal(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """Read the agent's refusal: whose fault is it? The client can have it if no other agent serves."""
        if isinstance(event, ResponseData):
            self.response_body_buf += event.data
            if len(self.response_body_buf) > REFUSAL_BYTES:
                yield from self.sort_refusal()
        elif isinstance(event, ResponseEndOfMessage):
            yield from self.sort_refusal(event)

    def sort_refusal(self, end: ResponseEndOfMessage | None = None) -> layer.CommandGenerator[None]:
        """Give it to the caller whose fault it is, or try the next agent; without an end, the rest is yet to come."""
        assert self.refusal and self.ours
        refusal = from_mitmproxy(self.refusal, bytes(self.response_body_buf))
        blame = blame_of(refusal, self.ours.route)
        if blame is Blame.CALLER:
            yield from self.pass_refusal_on(refusal, end)
            return
        if end is None:
            yield from self.balanced_layer.abandon(self.context.server)
        reason = f"status {refusal.status}"
        yield from self.try_next(Failure(reason, connected=True, retriable=True, refusal=refusal, blame=blame))

    def pass_refusal_on(self, refusal: Response, end: ResponseEndOfMessage | None) -> layer.CommandGenerator[None]:
        """The answer is the caller's, in the caller's protocol."""
        head, body = self.refusal_head, refusal.body
        assert head and self.ours
        self.refusal = self.refusal_head = None
        self.response_body_buf.clear()
        self.server_state = self.state_wait_for_response_headers
        translated = for_caller(refusal, self.ours.dialect, head=self.ours.head_only)
        if translated is not None:
            if end is None:
                yield from self.balanced_layer.abandon(self.context.server)
            body, end = translated.body, ResponseEndOfMessage(self.stream_id)
            head = ResponseHeaders(self.stream_id, to_mitmproxy(Response(translated.status, translated.fields)))
        yield from super().state_wait_for_response_headers(head)
        if body:
            yield from self.server_state(ResponseData(self.stream_id, body))
        if end is not None:
            yield from self.server_state(end)

    def try_next(self, failure: Failure) -> layer.CommandGenerator[None]:
        """The attempt has failed: the addon accounts for it and sends the request elsewhere or answers it."""
        assert self.ours
        self.refusal = self.refusal_head = None
        self.response_body_buf.clear()
        self.flow.response = None
        self.server_state = self.state_wait_for_response_headers
        self.ours.failure = failure
        yield from self.make_server_connection()

    def handle_protocol_error(
        self, event: RequestProtocolError | ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        if self.relay is not None:
            self.relay.stop()
        if (
            not isinstance(event, ResponseProtocolError)
            or self.ours is None
            or self.ours.address is None
            or self.client_state != self.state_done
        ):
            yield from super().handle_protocol_error(event)
        elif self.server_state in (self.state_wait_for_response_headers, self.state_consume_refusal):
            yield from self.balanced_layer.abandon(self.context.server)
            stale = self.reused_connection and time.monotonic() - self.sent_at < STALE_SECONDS
            given_up = self.ours.expired or self.ours.given_up is not None or not self.ours.may_repeat
            if stale and self.refusal is None and not given_up:
                # An idle connection that the agent closed just now says nothing about the agent.
                err = yield from self.connect()
                if (yield from self.check_killed(True)):
                    return
                if err is None and not self.ours.expired and self.ours.given_up is None:
                    yield from self.send_request()
                    return
                yield from self.try_next(Failure(err or "timeout", connected=err is None, retriable=True))
                return
            yield from self.try_next(Failure(event.message, connected=True, retriable=True))
        elif self.server_state == self.state_consume_response_body:
            yield from self.end_failed_answer(event)
        elif self.server_state == self.state_stream_response_body:
            yield from self.end_failed_stream(event)
        else:
            yield from super().handle_protocol_error(event)

    def end_failed_answer(self, event: ResponseProtocolError) -> layer.CommandGenerator[None]:
        """The agent failed in the middle of an answer of which the client has seen nothing."""
        failed = FailedStream(self.flow, event.message, body=bytes(self.response_body_buf))
        yield from self.balanced_layer.abandon(self.context.server)
        yield StreamFailedHook(failed)
        if (yield from self.check_killed(True)):
            return
        if failed.whole:
            yield from self.state_consume_response_body(ResponseEndOfMessage(self.stream_id))
        else:
            yield from self.try_next(Failure(event.message, connected=True, retriable=False))

    def end_failed_stream(self, event: ResponseProtocolError) -> layer.CommandGenerator[None]:
        """Tell the client in the stream's own format that the answer is not whole, and end the stream properly."""
        assert self.ours
        failed = FailedStream(self.flow, self.ours.given_up or event.message)
        yield from self.balanced_layer.abandon(self.context.server)
        yield StreamFailedHook(failed)
        if (yield from self.check_killed(True)):
            return
        if failed.whole:
            yield from self.state_stream_response_body(ResponseEndOfMessage(self.stream_id))
            return
        if not failed.last_words:
            yield from super().handle_protocol_error(event)
            return
        self.flow.error = flow.Error(event.message)
        yield HttpErrorHook(self.flow)
        self.server_state = self.state_errored
        self.flow.live = False
        yield SendHttp(ResponseData(self.stream_id, failed.last_words), self.context.client)
        yield DropStream(self.stream_id)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)


class BalancedHttpLayer(HttpLayerBase):
    """One client connection.

    `body_limit` gives the most bytes a request's body may have, `budget` what all bodies may take; `body_too_large`,
    `no_memory` and `internal_error` are the answers that the layer gives by itself, `via` is this balancer's own name
    in the Via header. `relay` is asked after a chunk of a streamed answer to take the rest past the layer; it says
    whether it is to be asked again. `run_hook` may run a hook at once; it says whether the hook is over, otherwise the
    hook goes mitmproxy's way. `client_gone` hears at once that a client has left or has reset a request, also while the
    request waits for a hook or a connection.
    """

    def __init__(
        self,
        context: Context,
        mode: HTTPMode,
        *,
        body_limit: Callable[[http.HTTPFlow], int],
        body_too_large: Callable[[http.HTTPFlow, int], http.Response],
        budget: MemoryBudget,
        no_memory: Callable[[http.HTTPFlow], http.Response],
        internal_error: Callable[[http.HTTPFlow], http.Response],
        via: str,
        relay: Callable[[BalancedStream], bool],
        run_hook: Callable[[commands.StartHook], bool],
        client_gone: Callable[[http.HTTPFlow], None],
    ) -> None:
        super().__init__(context, mode)
        self.body_limit = body_limit
        self.body_too_large = body_too_large
        self.budget = budget
        self.no_memory = no_memory
        self.internal_error = internal_error
        self.via = via
        self.relay = relay
        self.run_hook = run_hook
        self.client_gone = client_gone
        self.streaming: BalancedStream | None = None
        """Of which a chunk has been passed on in the course of this event."""
        self._from_agent = False
        """Whether the event that is being handled comes from an agent's connection."""
        self._sender: layer.Layer | None = None
        """The connection whose events are being handled."""
        self.used: set[Connection] = set()
        """Connections to agents that have carried a request."""
        self.held_up: HeldUp | None = None
        """Of a client that speaks HTTP/2."""

    def on_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        self._from_agent = False
        if isinstance(event, events.ConnectionEvent):
            connection = event.connection
            self._from_agent = connection is not self.context.client
            if connection not in self.connections and connection is not self.context.server:
                return
            yield from super().on_event(event)
            if isinstance(event, events.ConnectionClosed) and connection is not self.context.client:
                self._forget(connection)
        else:
            yield from super().on_event(event)
        if self.streaming is not None:
            stream, self.streaming = self.streaming, None
            stream.may_relay = self.relay(stream)

    def let_go(self) -> None:
        """The client is gone, and so is what it had sent."""
        for stream in list(self.streams.values()):
            if isinstance(stream, BalancedStream):
                stream.let_go()
                stream.response_body_buf.clear()
        if self.held_up is not None:
            self.held_up.connection.let_go()

    def held(self) -> list[tuple[int, int]]:
        """The streams of HTTP/2 for whose windows something waits, and how many bytes."""
        return self.held_up.connection.all_held() if self.held_up is not None else []

    def flows(self, stream_id: int) -> list[http.HTTPFlow]:
        """The request of that stream; of all, if it is 0."""
        streams = [stream for each, stream in self.streams.items() if stream_id in (0, each)]
        return [stream.flow for stream in streams if isinstance(stream, HttpStream) and hasattr(stream, "flow")]

    def run_at_once(self, hook: commands.StartHook) -> bool:
        """Run the hook, where what follows cannot come back to a connection in the midst of its own event.

        Of an agent's event that is what goes to the client; a request that is sent, again or as the next one, could
        go to the agent whose answer is just ending. Whether the hook is over.
        """
        if self._from_agent and not isinstance(hook, HttpResponseHeadersHook | HttpResponseHook):
            return False
        return isinstance(self.connections[self.context.client], Http1Server) and self.run_hook(hook)

    def event_to_child(self, child: layer.Layer, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(child, HttpStream):
            if isinstance(event, FROM_AGENTS) and self._sender not in self.connections.values():
                return  # what came in one piece with that for which the agent was given up
            if isinstance(event, RequestProtocolError) and isinstance(child, BalancedStream):
                child.leave()
            yield from super().event_to_child(child, event)
            return
        if isinstance(event, RequestHeaders):
            # On its way out. The flow keeps what the client sent, which mitmproxy still needs for the client's side.
            stream = self.streams.get(event.stream_id)
            ours = stream.ours if isinstance(stream, BalancedStream) else None
            if ours is None:
                head = request_to_agent(event.request, self.via)
            else:
                caller = ours.caller
                head = request_to_agent(event.request, self.via, caller.credentials, ours.address, caller.target)
            event = RequestHeaders(event.stream_id, head, event.end_stream)
        outer, self._sender = self._sender, child
        try:
            yield from super().event_to_child(child, event)
        finally:
            self._sender = outer

    def make_stream(self, stream_id: StreamId) -> layer.CommandGenerator[None]:
        client = self.connections[self.context.client]
        if self.held_up is None and isinstance(client, Http2Server):
            connection = client.h2_conn
            if isinstance(connection, BoundedH2Connection):
                self.held_up = HeldUp(self.context.client.id, connection)
        self.streams[stream_id] = BalancedStream(self.context.fork(), stream_id)
        yield from self.event_to_child(self.streams[stream_id], events.Start())

    def close_idle(self, keep: tuple[str, int]) -> layer.CommandGenerator[None]:
        """Close the oldest of the client's connections to other agents, where there are many of them.

        None is closed while another of the client's requests may be running there.
        """
        if len(self.streams) > 1:
            return
        others = [c for c in self.connections if isinstance(c, Server) and c.address != keep]
        for connection in others[: max(0, len(others) - IDLE_CONNECTIONS)]:
            yield from self.abandon(connection)

    def abandon(self, connection: Connection) -> layer.CommandGenerator[None]:
        """Close a connection to an agent and hear no more of it."""
        if connection.state is not ConnectionState.CLOSED:
            yield commands.CloseConnection(connection)
        self._forget(connection)

    def forget_failed(self, address: tuple[str, int]) -> None:
        """Let go of connections that could not be made: mitmproxy would answer the next attempt with the old error."""
        for connection in list(self.connections):
            if isinstance(connection, Server) and connection.address == address and connection.error:
                self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        if connection not in self.waiting_for_establishment:
            self.connections.pop(connection, None)
        self.used.discard(connection)


__all__ = [
    "BUFFERED_ANSWER",
    "AdvanceHook",
    "BalancedHttpLayer",
    "BalancedStream",
    "FailedStream",
    "LongAnswerHook",
    "RouteRequestHook",
    "SendingHook",
    "StreamFailedHook",
]
