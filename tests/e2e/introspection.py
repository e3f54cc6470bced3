"""A second addon, for tests: tells what is alive in the proxy's process."""

import asyncio
import gc
import json
import re
from collections import Counter

from mitmproxy import ctx, http

from ollama_balancer.gateway.context import RequestContext
from ollama_balancer.mitm.addons import the_addon
from ollama_balancer.mitm.transports import unsent_to


def _contexts() -> int:
    """Requests that something still holds, that of this very call included."""
    gc.collect()
    return sum(type(each) is RequestContext for each in gc.get_objects())


class Introspection:
    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if flow.request.path == "/introspection":
            addon, this = the_addon(), the_addon().balancer
            connections = ctx.master.addons.get("proxyserver").connections
            selector = getattr(asyncio.get_running_loop(), "_selector", None)
            value = {
                "tasks": Counter(re.sub(r"-\d+$| [(\[].*", "", str(task.get_name())) for task in asyncio.all_tasks()),
                "clients": len(connections),
                "servers": sum(len(handler.transports) - 1 for handler in connections.values()),
                "contexts": len(this.gateway.live),
                "in_flight": {agent.name: agent.in_flight for agent in this.registry},
                "timers": len(addon.connections.connect_timers),
                "kept_contexts": _contexts() - 1,
                "kept_streams": sum(
                    len(layer.streams) for layers in addon.connections.layers.values() for layer in layers
                )
                - 1,
                "wakeups": sum(len(handler.wakeup_timer) for handler in connections.values()),
                "memory": this.budget.used,
                "relayed": this.gateway.request_metrics.relayed,
                "hooks": this.hooks is not None and this.hooks.on,
                "unsent": max(unsent_to(client_id) for client_id in connections),
                "receivers": len(getattr(selector, "receivers", ())),
            }
            flow.response = http.Response.make(200, json.dumps(value), {"Content-Type": "application/json"})


addons = [Introspection()]
