"""mitmproxy's HTTP layer, except that each request asks for its agent just before it is sent.

The route is asked for when the request is complete and no longer held, so that a person who edits a prompt holds no
agent, and again when an agent fails before the first byte of its answer. What an agent that was given up still sends
must not reach the client: its connection is taken out of the layer's books at once, and later events of a connection
that is not in the books are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mitmproxy import flow, http
from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    HttpErrorHook,
    HttpEvent,
    HttpLayer,
    HTTPMode,
    HttpResponseHeadersHook,
    HttpStream,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    SendHttp,
)
from mitmproxy.proxy.layers.http._base import StreamId

RETRIED_STATUSES = frozenset({502, 503, 504})
"""Answers that say that the agent cannot serve now, before any work was done."""

REFUSAL_BYTES = 64 * 1024
"""How much of such an answer's body is kept, for the client that gets it after all."""


@dataclass(frozen=True)
class Failure:
    """Why an attempt came to nothing."""

    reason: str
    connected: bool
    """Whether the agent was reached at all."""
    retriable: bool
    """Whether the request may go to another agent: nothing of an answer was seen, and the request is at hand."""
    refusal: http.Response | None = None
    """The answer, where there was one."""


@dataclass(eq=False)
class Routing:
    """One request's search for an agent, handed to the addon's `route_request`.

    The addon either sets the request's host and port and `routed`, or sets the flow's response. `failure` tells how
    the last attempt ended, None at the first.
    """

    flow: http.HTTPFlow
    failure: Failure | None = None
    routed: bool = False
    expired: bool = False
    """The time for a first byte has run out: no attempt more."""


@dataclass
class RouteRequestHook(commands.StartHook):
    """The request is complete and about to be sent: to which agent?"""

    routing: Routing
    blocking = True


@dataclass
class StreamFailedHook(commands.StartHook):
    """The agent failed in the middle of its answer. The addon may give the client last words in `last_words`."""

    failed: FailedStream
    blocking = True


@dataclass(eq=False)
class FailedStream:
    flow: http.HTTPFlow
    reason: str
    last_words: bytes = b""


class BalancedStream(HttpStream):
    """One request and its answer."""

    routing: Routing | None = None
    refusal: http.Response | None = None
    reused_connection = False

    @property
    def balanced_layer(self) -> BalancedHttpLayer:
        parent = self.context.layers[self.context.layers.index(self) - 1]
        assert isinstance(parent, BalancedHttpLayer)
        return parent

    # The request

    def state_consume_request_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, RequestData):
            limit = self.balanced_layer.body_limit(self.flow)
            if len(self.request_body_buf) + len(event.data) > limit:
                self.request_body_buf.clear()
                self.client_state = self.state_done
                self.flow.response = self.balanced_layer.body_too_large(self.flow, limit)
                yield from self.answer()
                return
        yield from super().state_consume_request_body(event)

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        """Ask for an agent and connect to it, until one is reached or the flow is answered otherwise."""
        if self.routing is None:
            self.routing = Routing(self.flow)
        while True:
            self.routing.routed = False
            yield RouteRequestHook(self.routing)
            if (yield from self.check_killed(True)):
                return False
            if not self.routing.routed:
                if self.flow.response is None:
                    # The hook raised: mitmproxy logs that and goes on. An unrouted request must not.
                    self.flow.response = self.balanced_layer.internal_error(self.flow)
                yield from self.answer()
                return False
            err = yield from self.connect()
            if (yield from self.check_killed(True)):
                return False
            if err is None:
                return True
            self.routing.failure = Failure(err, connected=False, retriable=True)

    def connect(self) -> layer.CommandGenerator[str | None]:
        """Connect to where the request is to go. Returns an error, or None when connected."""
        request = self.flow.request
        address = (request.host, request.port)
        yield from self.balanced_layer.close_idle(keep=address)
        connection, err = yield GetHttpConnection(address, request.scheme == "https", None, "tcp")
        if err is not None:
            self.balanced_layer.forget_failed(address)
            return str(err)
        self.reused_connection = connection in self.balanced_layer.used
        self.balanced_layer.used.add(connection)
        self.context.server = self.flow.server_conn = connection
        return None

    def send_request(self) -> layer.CommandGenerator[None]:
        """Send the whole request, which is at hand, to the agent now connected."""
        request, server = self.flow.request, self.context.server
        content = request.raw_content
        yield SendHttp(RequestHeaders(self.stream_id, request, not content), server)
        if content:
            yield SendHttp(RequestData(self.stream_id, content), server)
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
        if event.response.status_code in RETRIED_STATUSES and self.client_state == self.state_done:
            self.refusal = event.response
            self.server_state = self.state_consume_refusal
            return
        yield from super().state_wait_for_response_headers(event)

    def state_consume_refusal(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """Read the agent's refusal to its end, so that the client can have it if no other agent serves."""
        assert self.refusal
        if isinstance(event, ResponseData):
            if len(self.response_body_buf) < REFUSAL_BYTES:
                self.response_body_buf += event.data
        elif isinstance(event, ResponseEndOfMessage):
            self.refusal.raw_content = bytes(self.response_body_buf)
            status = self.refusal.status_code
            yield from self.try_next(Failure(f"status {status}", True, retriable=True, refusal=self.refusal))

    def try_next(self, failure: Failure) -> layer.CommandGenerator[None]:
        """The attempt has failed: the addon accounts for it and sends the request elsewhere or answers it."""
        assert self.routing
        self.refusal = None
        self.response_body_buf.clear()
        self.flow.response = None
        self.server_state = self.state_wait_for_response_headers
        self.routing.failure = failure
        if (yield from self.make_server_connection()):
            yield from self.send_request()

    def handle_protocol_error(
        self, event: RequestProtocolError | ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        if (
            not isinstance(event, ResponseProtocolError)
            or self.routing is None
            or not self.routing.routed
            or self.client_state != self.state_done
        ):
            yield from super().handle_protocol_error(event)
        elif self.server_state in (self.state_wait_for_response_headers, self.state_consume_refusal):
            yield from self.balanced_layer.abandon(self.context.server)
            if self.reused_connection and self.refusal is None and not self.routing.expired:
                # An idle connection that the agent closed just now says nothing about the agent.
                err = yield from self.connect()
                if (yield from self.check_killed(True)):
                    return
                if err is None:
                    yield from self.send_request()
                    return
                yield from self.try_next(Failure(err, connected=False, retriable=True))
                return
            yield from self.try_next(Failure(event.message, connected=True, retriable=True))
        elif self.server_state == self.state_consume_response_body:
            yield from self.balanced_layer.abandon(self.context.server)
            yield from self.try_next(Failure(event.message, connected=True, retriable=False))
        elif self.server_state == self.state_stream_response_body:
            yield from self.end_failed_stream(event)
        else:
            yield from super().handle_protocol_error(event)

    def end_failed_stream(self, event: ResponseProtocolError) -> layer.CommandGenerator[None]:
        """Tell the client in the stream's own format that the answer is not whole, and end the stream properly."""
        failed = FailedStream(self.flow, event.message)
        yield StreamFailedHook(failed)
        if (yield from self.check_killed(True)):
            return
        if not failed.last_words:
            yield from super().handle_protocol_error(event)
            return
        self.flow.error = flow.Error(event.message)
        yield HttpErrorHook(self.flow)
        self.server_state = self.state_errored
        self.flow.live = False
        yield SendHttp(ResponseData(self.stream_id, failed.last_words), self.context.client)
        yield from self.balanced_layer.abandon(self.context.server)
        yield DropStream(self.stream_id)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)


class BalancedHttpLayer(HttpLayer):
    """One client connection.

    `body_limit` gives the most bytes a request's body may have, `body_too_large` and `internal_error` the answers
    that the layer gives by itself.
    """

    def __init__(
        self,
        context: Context,
        mode: HTTPMode,
        *,
        body_limit: Callable[[http.HTTPFlow], int],
        body_too_large: Callable[[http.HTTPFlow, int], http.Response],
        internal_error: Callable[[http.HTTPFlow], http.Response],
    ) -> None:
        super().__init__(context, mode)
        self.body_limit = body_limit
        self.body_too_large = body_too_large
        self.internal_error = internal_error
        self.used: set[Connection] = set()
        """Connections to agents that have carried a request."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.ConnectionEvent):
            connection = event.connection
            if connection not in self.connections and connection is not self.context.server:
                return
            yield from super()._handle_event(event)
            if isinstance(event, events.ConnectionClosed) and connection is not self.context.client:
                self._forget(connection)
        else:
            yield from super()._handle_event(event)

    def make_stream(self, stream_id: StreamId) -> layer.CommandGenerator[None]:
        self.streams[stream_id] = BalancedStream(self.context.fork(), stream_id)
        yield from self.event_to_child(self.streams[stream_id], events.Start())

    def close_idle(self, keep: tuple[str, int]) -> layer.CommandGenerator[None]:
        """Close the client's connections to other agents, unless another of its requests may be running there."""
        if len(self.streams) > 1:
            return
        for connection in list(self.connections):
            if isinstance(connection, Server) and connection.address != keep:
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
    "BalancedHttpLayer",
    "BalancedStream",
    "FailedStream",
    "Failure",
    "RouteRequestHook",
    "Routing",
    "StreamFailedHook",
]
