"""The flow list of mitmweb and mitmproxy: hides control calls and limits the length.

mitmproxy keeps every flow until the list is cleared, but a balancer runs for weeks.
"""

from collections.abc import Callable, Collection
from typing import Any

from mitmproxy import ctx, http
from mitmproxy.flow import Flow
from mitmproxy.hooks import UpdateHook

from ..api.paths import JOIN, KEYS, is_control_path
from ..gateway.headers import AGENT_HEADER
from ..gateway.memory_budget import MemoryBudget
from ..gateway.messages import header
from ..text import one_line
from .compat.mitmproxy_names import wrap_client_column
from .compat.names import Patches
from .flows import path_of

MAX_BYTES = 512 * 1024 * 1024
"""Bytes of finished flows that are kept, whatever their number: prompts may hold images of many megabytes."""

_SHOWING = ("view", "dumper", "save", "savehar", "intercept")
"""mitmproxy's addons that show, save or hold flows. A hidden flow must not be held."""

_AGENT = AGENT_HEADER.lower().encode()

_HOOKS = ("requestheaders", "request", "responseheaders", "response", "error", "http_connect_error")


def _with_agent(client_of: Callable[[Flow], str]) -> Callable[[Flow], str]:
    """The client column of mitmdump, with the agent that answered.

    The address after it is the one that the client requested.
    """

    def client_and_agent(flow: Flow) -> str:
        response = flow.response if isinstance(flow, http.HTTPFlow) else None
        agent = header(response.headers.fields, _AGENT) if response is not None else None
        return f"{client_of(flow)} → {one_line(agent)}" if agent else client_of(flow)

    return client_and_agent


def _is_control(flow: http.HTTPFlow) -> bool:
    return is_control_path(path_of(flow))


class FlowList:
    """`keep` is the number of finished flows to keep; 0: all. Their bodies count in the `budget`.

    Requests of `blocked_clients` are not shown.
    """

    def __init__(self, budget: MemoryBudget | None = None, blocked_clients: Collection[str] = ()) -> None:
        self._budget = budget or MemoryBudget(MAX_BYTES)
        self._budget.on_shortage = self.make_room
        self.keep = 0
        self._blocked_clients = blocked_clients
        self.show_control = False
        self.has_own_lines = False
        """Whether the terminal has the balancer's own line of a request, and not mitmdump's."""
        self._finished: dict[str, int] = {}
        """Bytes of finished flows by id, oldest first."""
        self._bytes = 0
        self._patches: dict[str, Patches] = {}
        """By the name of the patched addon."""

    def attach(self) -> None:
        """Hide control calls from the addons that show flows. mitmproxy's own checks still see them."""
        for name in _SHOWING:
            addon = ctx.master.addons.get(name)
            if addon is not None and name not in self._patches:
                patches = self._patches[name] = Patches()
                for hook in _HOOKS:
                    if hasattr(addon, hook):
                        patches.set(addon, hook, self._unless_hidden(getattr(addon, hook)))
                if name == "dumper":
                    for hook in ("response", "error"):
                        patches.set(addon, hook, self._unless_told(getattr(addon, hook)))
                    wrap_client_column(patches, addon, _with_agent)

    def detach(self) -> None:
        """Show all flows again."""
        while self._patches:
            self._patches.popitem()[1].restore()

    def _unless_hidden(self, hook: Callable[[http.HTTPFlow], Any]) -> Callable[[http.HTTPFlow], Any]:
        return lambda flow: None if self.hides(flow) else hook(flow)

    def _unless_told(self, hook: Callable[[http.HTTPFlow], Any]) -> Callable[[http.HTTPFlow], Any]:
        return lambda flow: None if self.has_own_lines and flow.live and not _is_control(flow) else hook(flow)

    def hides(self, flow: http.HTTPFlow) -> bool:
        if flow.client_conn.id in self._blocked_clients:
            return True
        path = path_of(flow)
        # Answers about keys and to hosts that join have secrets.
        return (not self.show_control or path.startswith((KEYS, JOIN))) and is_control_path(path)

    def begun(self, flow: http.HTTPFlow) -> None:
        """The flow is new or is replayed."""
        self._count(-self._finished.pop(flow.id, 0))

    def _count(self, size: int) -> None:
        self._bytes += size
        self._budget.used += size

    def make_room(self, missing: int) -> None:
        """Drop the oldest flows until so many bytes are freed."""
        view, wanted = self._view, self._bytes - missing
        for _ in range(len(self._finished)):
            if view is None or self._bytes <= wanted:
                break
            self._drop_first(view)

    def changed(self, flow: http.HTTPFlow) -> None:
        """Refresh the flow in the list."""
        if self._view is not None:
            ctx.master.addons.trigger(UpdateHook([flow]))

    def finished(self, flow: http.HTTPFlow) -> None:
        """The flow has finished and may be dropped."""
        view = self._view
        if view is None or not self.keep or view.get_by_id(flow.id) is None:
            return
        self.begun(flow)
        size = len(flow.request.raw_content or b"") + len((flow.response and flow.response.raw_content) or b"")
        self._finished[flow.id] = size
        self._count(size)
        for _ in range(len(self._finished) - 1):
            if len(self._finished) <= self.keep and self._bytes <= min(MAX_BYTES, self._budget.limit // 2):
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
