"""mitmproxy's HTTP layer with the balancer's streams.

Data that an abandoned agent still sends must not reach the client, so events of connections that the layer no longer
knows are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mitmproxy import http
from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    Http1Server,
    Http2Server,
    HTTPMode,
    HttpResponseHeadersHook,
    HttpResponseHook,
    HttpStream,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
    StreamId,
)

from .compat.mitmproxy_names import HttpLayerBase
from .headers import request_to_agent
from .http2 import BackloggedHosts, BoundedH2Connection
from .shared_stream import SharedStream
from .stream import BalancedStream

if TYPE_CHECKING:
    from ..gateway.memory_budget import MemoryBudget

FROM_AGENTS = (ResponseHeaders, ResponseData, ResponseTrailers, ResponseEndOfMessage, ResponseProtocolError)

IDLE_CONNECTIONS = 8
"""Idle connections to other agents that are kept per client, which may be sent back to them."""


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
        relay: Callable[[SharedStream], bool],
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
        self.streaming: SharedStream | None = None
        """The stream that has passed on a chunk during this event."""
        self._from_agent = False
        """Whether the event that is being handled comes from an agent's connection."""
        self._sender: layer.Layer | None = None
        """The connection whose events are being handled."""
        self.used: set[Connection] = set()
        """Connections to agents that have carried a request."""
        self.backlogged: BackloggedHosts | None = None
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

    def release(self) -> None:
        """The client has disconnected: release everything."""
        for stream in list(self.streams.values()):
            if isinstance(stream, BalancedStream):
                stream.release()
                stream.response_body_buf.clear()
        if self.backlogged is not None:
            self.backlogged.connection.release()

    def held(self) -> list[tuple[int, int]]:
        """HTTP/2 streams with buffered data, and how many bytes."""
        return self.backlogged.connection.all_held() if self.backlogged is not None else []

    def flows(self, stream_id: int) -> list[http.HTTPFlow]:
        """The flow of that stream; of all streams if it is 0."""
        streams = [stream for each, stream in self.streams.items() if stream_id in (0, each)]
        return [stream.flow for stream in streams if isinstance(stream, HttpStream) and hasattr(stream, "flow")]

    def run_at_once(self, hook: commands.StartHook) -> bool:
        """Run the hook at once unless what follows could re-enter the connection that is handling an event.

        During an agent's event only hooks of its answer qualify: a request that is sent next could go to the same
        agent. Returns whether the hook is finished.
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
                if ours.trace is not None:
                    head.headers.update(ours.trace.headers)
            event = RequestHeaders(event.stream_id, head, event.end_stream)
        outer, self._sender = self._sender, child
        try:
            yield from super().event_to_child(child, event)
        finally:
            self._sender = outer

    def make_stream(self, stream_id: StreamId) -> layer.CommandGenerator[None]:
        client = self.connections[self.context.client]
        if self.backlogged is None and isinstance(client, Http2Server):
            connection = client.h2_conn
            if isinstance(connection, BoundedH2Connection):
                self.backlogged = BackloggedHosts(self.context.client.id, connection)
        self.streams[stream_id] = BalancedStream(self.context.fork(), stream_id)
        yield from self.event_to_child(self.streams[stream_id], events.Start())

    def close_idle(self, keep: tuple[str, int]) -> layer.CommandGenerator[None]:
        """Close the oldest of many idle connections to other agents.

        None is closed while another request of the client may use it.
        """
        if len(self.streams) > 1:
            return
        others = [c for c in self.connections if isinstance(c, Server) and c.address != keep]
        for connection in others[: max(0, len(others) - IDLE_CONNECTIONS)]:
            yield from self.abandon(connection)

    def abandon(self, connection: Connection) -> layer.CommandGenerator[None]:
        """Close a connection to an agent and ignore its further events."""
        if connection.state is not ConnectionState.CLOSED:
            yield commands.CloseConnection(connection)
        self._forget(connection)

    def forget_failed(self, address: tuple[str, int]) -> None:
        """Forget failed connections: mitmproxy would answer the next attempt with the old error."""
        for connection in list(self.connections):
            if isinstance(connection, Server) and connection.address == address and connection.error:
                self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        if connection not in self.waiting_for_establishment:
            self.connections.pop(connection, None)
        self.used.discard(connection)
