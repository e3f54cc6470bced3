"""The list of flows in mitmweb and mitmproxy: what is not shown there, and how long it grows.

mitmproxy keeps every flow until a person clears the list. A balancer runs for weeks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from mitmproxy import ctx, http
from mitmproxy.flow import Flow
from mitmproxy.hooks import UpdateHook

from ..api.paths import is_control_path
from ..gateway.headers import AGENT_HEADER
from ..gateway.memory_budget import MemoryBudget
from ..gateway.messages import header
from ..text import one_line
from .compat.mitmproxy_names import wrap_client_column
from .compat.names import Patches
from .flows import path_of

MOST_BYTES = 512 * 1024 * 1024
"""Of the bodies of finished flows that are kept, whatever their number: prompts may hold images of many megabytes."""

_SHOWING = ("view", "dumper", "save", "savehar", "intercept")
"""mitmproxy's addons that show, save or hold flows. A flow that nobody sees must not be held."""

_AGENT = AGENT_HEADER.lower().encode()

_HOOKS = ("requestheaders", "request", "responseheaders", "response", "error", "http_connect_error")


def _with_agent(client_of: Callable[[Flow], str]) -> Callable[[Flow], str]:
    """What mitmdump's line of a request begins with: the client, and the agent that answered.

    The address after it is the one that the client asked.
    """

    def client_and_agent(flow: Flow) -> str:
        response = flow.response if isinstance(flow, http.HTTPFlow) else None
        agent = header(response.headers.fields, _AGENT) if response is not None else None
        return f"{client_of(flow)} → {one_line(agent)}" if agent else client_of(flow)

    return client_and_agent


class FlowList:
    """`keep` is the number of finished flows that stay; 0: all of them. What they hold counts in the `budget`.

    `blocked_clients` are the ids of connections whose requests are refused, whatever they are: they are not shown.
    """

    def __init__(self, budget: MemoryBudget | None = None, blocked_clients: Collection[str] = ()) -> None:
        self._budget = budget or MemoryBudget(MOST_BYTES)
        self._budget.on_shortage = self.make_room
        self.keep = 0
        self._blocked_clients = blocked_clients
        self.show_control = False
        self._finished: dict[str, int] = {}
        """The bytes of finished flows by id, the one first that was finished first."""
        self._bytes = 0
        self._patches: dict[str, Patches] = {}
        """By the name of the addon that is kept from them."""

    def attach(self) -> None:
        """Keep the balancer's own calls from those who show flows. They are still asked by mitmproxy's own checks."""
        for name in _SHOWING:
            addon = ctx.master.addons.get(name)
            if addon is not None and name not in self._patches:
                patches = self._patches[name] = Patches()
                for hook in _HOOKS:
                    if hasattr(addon, hook):
                        patches.set(addon, hook, self._unless_hidden(getattr(addon, hook)))
                if name == "dumper":
                    wrap_client_column(patches, addon, _with_agent)

    def detach(self) -> None:
        """Have those who show flows get all again."""
        while self._patches:
            self._patches.popitem()[1].restore()

    def _unless_hidden(self, hook: Callable[[http.HTTPFlow], Any]) -> Callable[[http.HTTPFlow], Any]:
        return lambda flow: None if self.hides(flow) else hook(flow)

    def hides(self, flow: http.HTTPFlow) -> bool:
        if flow.client_conn.id in self._blocked_clients:
            return True
        return not self.show_control and is_control_path(path_of(flow))

    def begun(self, flow: http.HTTPFlow) -> None:
        """The flow is new, or is sent again."""
        self._count(-self._finished.pop(flow.id, 0))

    def _count(self, size: int) -> None:
        self._bytes += size
        self._budget.used += size

    def make_room(self, missing: int) -> None:
        """Have the oldest go until so many bytes are given back."""
        view, wanted = self._view, self._bytes - missing
        for _ in range(len(self._finished)):
            if view is None or self._bytes <= wanted:
                break
            self._drop_first(view)

    def changed(self, flow: http.HTTPFlow) -> None:
        """Have it shown anew, where that does not happen by itself."""
        if self._view is not None:
            ctx.master.addons.trigger(UpdateHook([flow]))

    def finished(self, flow: http.HTTPFlow) -> None:
        """The flow may be dropped when it is one of too many."""
        view = self._view
        if view is None or not self.keep or view.get_by_id(flow.id) is None:
            return
        self.begun(flow)
        size = len(flow.request.raw_content or b"") + len((flow.response and flow.response.raw_content) or b"")
        self._finished[flow.id] = size
        self._count(size)
        for _ in range(len(self._finished) - 1):
            if len(self._finished) <= self.keep and self._bytes <= min(MOST_BYTES, self._budget.limit // 2):
                break
            self._drop_first(view)

    def _drop_first(self, view: Any) -> None:
        flow_id, size = next(iter(self._finished.items()))
        del self._finished[flow_id]
        flow = view.get_by_id(flow_id)
        if flow is not None and (flow.live or flow.intercepted):
            self._finished[flow_id] = size  # a person holds its answer
            return
        self._count(-size)
        if flow is not None:
            view.remove([flow])

    @property
    def _view(self) -> Any:
        return ctx.master.addons.get("view")
