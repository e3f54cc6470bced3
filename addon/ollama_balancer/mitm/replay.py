"""Requests that are sent again: they go through the balancer like those of a client, with all that it does for them."""

from __future__ import annotations

from collections.abc import Callable

from mitmproxy import ctx, http
from mitmproxy.addons import clientplayback
from mitmproxy.options import Options
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.utils import asyncio_utils

from .compat.mitmproxy_names import REPLAY_HANDLER
from .compat.names import Patches
from .layer import BalancedHttpLayer

type MakeLayer = Callable[[Context, HTTPMode], BalancedHttpLayer]

_patches = Patches()


class BalancedReplayHandler(clientplayback.ReplayHandler):
    """mitmproxy's, with the balancer's HTTP layer in the place of the plain one."""

    def __init__(self, make_layer: MakeLayer, flow: http.HTTPFlow, options: Options) -> None:
        super().__init__(flow, options)
        # What looks for the flow's connections finds this replay's, not those of the client that is long gone.
        flow.client_conn = self.client
        context = self.layer.context
        context.layers.remove(self.layer)
        self.layer = make_layer(context, HTTPMode.transparent)
        self.layer.connections[self.client] = clientplayback.MockServer(flow, context.fork())

    async def replay(self) -> None:
        connections = ctx.master.addons.get("proxyserver").connections
        connections[self.client.id] = self
        try:
            await super().replay()
        finally:
            del connections[self.client.id]
            for timer in self.wakeup_timer:
                timer.cancel()


def replay_through(make_layer: MakeLayer) -> None:
    """Have mitmproxy's own replay go through the balancer."""

    def handler(flow: http.HTTPFlow, options: Options) -> BalancedReplayHandler:
        return BalancedReplayHandler(make_layer, flow, options)

    _patches.restore()
    _patches.replace(REPLAY_HANDLER, handler)


def replay_as_before() -> None:
    _patches.restore()


def send_again(flow: http.HTTPFlow) -> None:
    """Send the flow's request at once, beside others that run."""
    flow.is_replay = "request"
    flow.response = flow.error = None
    handler = clientplayback.ReplayHandler(flow, ctx.options)
    asyncio_utils.create_task(handler.replay(), name="replay", keep_ref=True)
