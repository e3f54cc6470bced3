"""Client and agent connections: limits, access and disconnects."""

import asyncio
import collections
import logging
from collections.abc import Hashable

from mitmproxy import ctx, http
from mitmproxy.connection import Client
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer, NextLayer
from mitmproxy.proxy.layers import TCPLayer, UDPLayer
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from agent_reporter.limits import MAX_BODY_BYTES

from ..api.paths import is_control_path
from ..gateway import descriptors, stalled_clients
from ..gateway.connections import Connections as Limits
from ..gateway.messages import RETRY_AFTER
from . import patches
from .answers import Answers
from .balancer import Balancer
from .flows import context_of, error_of, path_of
from .layer import BalancedHttpLayer
from .transports import abort_client, close_server, empty_client, handler_of, handlers

logger = logging.getLogger(__name__)

MAX_BODY = 128 * 1024 * 1024
"""Bytes of a request body that are buffered for retries; images make prompts of tens of megabytes."""

REFUSED_BODY = 64 * 1024
"""Bytes read of the body of a request that was refused at its head."""

FEW_CLIENTS = 1000
"""Below that the log says how many the open-file limit allows."""

MAX_CONNECTIONS = 100_000
"""Connections per client and agent: an HTTP/2 client sends many requests at once."""

AHEAD_SECONDS = 60.0
"""Seconds that a pipelining client may leave its answers unread."""


class Connections:
    name = "ollama-balancer-connections"

    def __init__(self, balancer: Balancer, answers: Answers) -> None:
        self.balancer = balancer
        self.answers = answers
        self.limits = Limits(balancer.clock, descriptors.most_clients(descriptors.MAX_USEFUL))
        self.stalled = stalled_clients.StalledClients(balancer.clock)
        self.layers: dict[str, list[BalancedHttpLayer]] = {}
        """By client id."""
        self.connect_timers: dict[str, asyncio.TimerHandle] = {}
        """Connect timeouts by connection id."""
        self._full_at = float("-inf")
        """When it was last logged that there are too many connections."""
        self._quiet_accept: descriptors.QuietAccept | None = None

    def tick(self) -> None:
        """Periodic work: disconnect clients that send no head or read no answer."""
        for client in self.limits.overdue():
            self.limits.discard(client)
            abort_client(client)
        if self.stalled.due:
            self._cut_stalled()

    def stop(self) -> None:
        """Restore the exception handler of the event loop."""
        if self._quiet_accept is not None:
            self._quiet_accept.restore()
            self._quiet_accept = None

    def next_layer(self, data: NextLayer) -> None:
        """Let mitmproxy choose the layers, then replace its HTTP layer."""
        ctx.master.addons.get("nextlayer").next_layer(data)
        parent: Layer | None = None
        layer: Layer | None = data.layer
        while layer is not None and type(layer) is not HttpLayer:
            parent, layer = layer, getattr(layer, "child_layer", None)
        if layer is None:
            if isinstance(data.layer, TCPLayer | UDPLayer):
                # Bytes that are not HTTP have no way past the routes: our layer answers them as a bad request.
                data.context.layers.remove(data.layer)
                data.layer = self.http_layer(data.context, HTTPMode.transparent)
            return
        assert isinstance(layer, HttpLayer)
        layer.context.layers.remove(layer)
        balanced = self.http_layer(layer.context, layer.mode)
        if parent is None:
            data.layer = balanced
        else:
            parent.child_layer = balanced  # type: ignore[attr-defined]

    def http_layer(self, context: Context, mode: HTTPMode) -> BalancedHttpLayer:
        hooks = self.balancer.hooks
        layer = BalancedHttpLayer(
            context,
            mode,
            body_limit=body_limit,
            body_too_large=body_too_large,
            via=self.balancer.via,
            budget=self.balancer.budget,
            no_memory=_no_memory,
            internal_error=lambda flow: error_of(flow, 500, "the balancer could not route this request; see its log"),
            relay=self.answers.relay,
            # A replay's handler does more than to run the hooks.
            run_hook=hooks.run if hooks and handler_of(context.client) else lambda hook: False,
            client_gone=self._client_gone,
        )
        if handler_of(context.client) is not None:
            self.layers.setdefault(context.client.id, []).append(layer)
        return layer

    def limit(self) -> None:
        """Raise the limit of open files and derive the limit of clients."""
        limit = descriptors.raise_limit()
        self.limits.most = descriptors.most_clients(limit)
        level = logging.INFO if self.limits.most < FEW_CLIENTS else logging.DEBUG
        logger.log(level, "Open-file limit: %d, which allows %d clients at once.", limit, self.limits.most)
        if self._quiet_accept is None:
            self._quiet_accept = descriptors.QuietAccept(asyncio.get_running_loop())

    def client_connected(self, client: Client) -> None:
        """mitmproxy lets a client have five connections to an address, and has the sixth wait without a limit."""
        if self.balancer.settings is None:
            client.error = "the balancer could not be set up; see its log"  # mitmproxy closes the connection
            return
        handler = handler_of(client)
        if handler is not None:
            accepted, evicted = self.limits.add(client.id, str(client.peername[0]) if client.peername else "")
            if evicted is not None:
                abort_client(evicted)
            if not accepted:
                self._refuse_client(client, handler)
                return
            handler.max_conns = collections.defaultdict(lambda: asyncio.Semaphore(MAX_CONNECTIONS))
        self._check_address(client)

    def _check_address(self, client: Client) -> None:
        """Check the address of a client."""
        if client.peername and not self.balancer.networks.allow(client.peername[0]):
            self.balancer.blocked_clients.add(client.id)

    def recheck_clients(self) -> None:
        """Check the addresses of all connected clients again."""
        self.balancer.blocked_clients.clear()
        for handler in handlers().values():
            self._check_address(handler.client)

    def _refuse_client(self, client: Client, handler: ProxyConnectionHandler) -> None:
        most, now = self.limits.most, self.balancer.clock()
        client.error = f"too many connections ({most} at once, as the open-file limit allows)"
        writer = handler.transports[client].writer
        if isinstance(writer, asyncio.StreamWriter):
            writer.write(patches.refusal(503, client.error))
        if now - self._full_at >= descriptors.LOG_SECONDS:
            self._full_at = now
            logger.warning(
                "Connections are refused: %d clients are connected, or three quarters of that from one address, and "
                "all have requests running. Raise the open-file limit (ulimit -n, LimitNOFILE=) to allow more.",
                most,
            )

    def head_begun(self, client: Client) -> None:
        self.limits.head_begun(client.id)

    async def next_request(self, client: Client) -> None:
        """A client pipelines requests: others get a turn, and it must read its answers first."""
        try:
            async with asyncio.timeout(AHEAD_SECONDS):
                await empty_client(client.id)
        except TimeoutError:
            abort_client(client.id)

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """Connect to agents only, with the connect timeout."""
        settings = self.balancer.settings
        assert settings
        address = data.server.address
        if address is None or not self.balancer.registry.knows(address[0], address[1]):
            data.server.error = "the balancer connects only to its agents"
            return
        timeout = settings.connect_timeout
        self.connect_timers[data.server.id] = asyncio.get_running_loop().call_later(
            timeout, self._close_server, data.client, data.server.id
        )

    def server_connected(self, data: ServerConnectionHookData) -> None:
        """Stop the connect timer."""
        timer = self.connect_timers.pop(data.server.id, None)
        if timer is not None:
            timer.cancel()

    server_connect_error = server_connected

    def _close_server(self, client: Client, server_id: str) -> None:
        """The connect timeout has expired: the layer sees it as a failure."""
        self.connect_timers.pop(server_id, None)
        close_server(client, server_id)

    def client_disconnected(self, client: Client) -> None:
        """End everything that the client had running."""
        self.limits.discard(client.id)
        self.balancer.blocked_clients.discard(client.id)
        for layer in self.layers.pop(client.id, ()):
            layer.release()
        for context in [each for each in self.balancer.gateway.live if each.caller.client_id == client.id]:
            self.answers.cancel(context)

    def _client_gone(self, flow: http.HTTPFlow) -> None:
        """The client has left or has reset the stream of the request."""
        context = context_of(flow)
        if context is not None:
            self.answers.cancel(context)

    def _cut_stalled(self) -> None:
        """Disconnect clients that do not read their answers, and release what they hold."""
        waiting: list[tuple[tuple[str, int], Hashable]] = []
        for client_id, handler in handlers().items():
            io = handler.transports.get(handler.client)
            if io is not None and (amount := stalled_clients.unsent(io.writer)) is not None:
                waiting.append(((client_id, 0), amount))
        for client_id, layers in self.layers.items():
            waiting += [((client_id, stream), size) for layer in layers for stream, size in layer.held()]
        for client_id, stream in self.stalled.find_stalled(waiting):
            why = f"the client has read nothing of its answer for {stalled_clients.SEND_SECONDS:g} s"
            flows = [flow for layer in self.layers.get(client_id, ()) for flow in layer.flows(stream)]
            contexts = [context for flow in flows if (context := context_of(flow)) is not None]
            running = [context for context in contexts if context.outcome is None]
            logger.info("%s: %s; disconnected.", self.limits.address_of(client_id), why)
            for context in running:
                self.answers.cancel(context, why)
            if stream and running:
                self.balancer.gateway.adapter.cut(running[0])  # the client's other streams go on
            else:
                abort_client(client_id)


def body_too_large(flow: http.HTTPFlow, limit: int) -> http.Response:
    return error_of(flow, 413, f"the body has more than {limit} bytes")


def body_limit(flow: http.HTTPFlow) -> int:
    """The bytes that the body of this request may have."""
    if flow.response is not None:
        return REFUSED_BODY
    return MAX_BODY_BYTES if is_control_path(path_of(flow)) else MAX_BODY


def _no_memory(flow: http.HTTPFlow) -> http.Response:
    response = error_of(flow, 503, "the balancer has no memory left for request bodies (balancer_memory)")
    response.headers["Retry-After"] = RETRY_AFTER
    return response
