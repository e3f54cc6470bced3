"""What the addons share: one fleet, one gateway, and how they are set up."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mitmproxy import ctx, http

from ..core.agent import Agent
from ..core.registry import AgentRegistry
from ..gateway.accounting import Accounting
from ..gateway.clock import SteadyClock
from ..gateway.context import RequestContext
from ..gateway.gateway import Gateway
from ..gateway.memory_budget import PART, MemoryBudget, machine_memory
from ..gateway.networks import ClientNetworks
from ..gateway.tasks import run_in_background
from ..ollama import origins
from ..ollama.names import canonical_name
from ..storage.token import Token
from . import transports
from .adapter import FlowAdapter
from .compat import Lost
from .fastpath.hooks import LeanHooks
from .flow_list import FlowList
from .inspection.annotations import annotate
from .options import Settings
from .shutdown import Stopper

if TYPE_CHECKING:
    from ..hosts.prober import Prober


def timed[A](hook: Callable[[A, http.HTTPFlow], None]) -> Callable[[A, http.HTTPFlow], None]:
    """Count what the hook of an addon takes that has the balancer as `balancer`."""

    @functools.wraps(hook)
    def counted(self: A, flow: http.HTTPFlow) -> None:
        began = time.perf_counter()
        hook(self, flow)
        self.balancer.gateway.tally.processing_seconds += time.perf_counter() - began  # type: ignore[attr-defined]

    return counted


class Balancer:
    """One fleet behind one mitmproxy. It outlives a reload of balancer.py, and so do its agents and requests.

    `clock` gives monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.clock = clock or SteadyClock()
        self.via = f"1.1 ollama-balancer-{secrets.token_hex(8)}"
        self.settings: Settings | None = None
        self.token: Token | None = None
        self.registry = AgentRegistry(self.clock, must_reach=True, canonical_name=canonical_name)
        self.registry.fleet.on_unproven = self.look_at
        self.stopper = Stopper(self._unfinished, lambda: ctx.master.shutdown())
        self.gateway = Gateway(self.registry, FlowAdapter(self.via, self.show), lambda: self.stopper.ending)
        self.gateway.router.explains = self.is_watched
        self.accounting = Accounting(self.registry, self.gateway.tally)
        self.gateway.on_end = self.accounting.ended
        self.networks = ClientNetworks(self.clock)
        self.strangers: set[str] = set()
        """The ids of connections whose requests are refused, for where they come from."""
        self.budget = MemoryBudget(machine_memory() // PART)
        self.flows = FlowList(self.budget, self.strangers)
        self.hooks: LeanHooks | None = None
        """mitmproxy's hooks by the short way; None before the addon is loaded."""
        self.lost: Lost | None = None
        """What does not work with what is installed. None: nothing does, or it is not loaded."""
        self.prober: Prober | None = None
        self.running = False
        """Whether mitmproxy runs with the addon loaded."""

    @property
    def has_nothing_configured(self) -> bool:
        """Whether no option names an agent."""
        return self.settings is not None and not self.settings.agents and not self.settings.demo

    def look_at(self, agent: Agent) -> None:
        """Probe an agent that is new or has moved."""
        if self.prober is not None:
            run_in_background(self.prober.look_at(agent), "first look")

    def allows(self, origin: str) -> bool:
        """Whether web pages of that origin may call."""
        return origins.allowed_origin(origin, self.settings.origins if self.settings else ())

    def is_watched(self) -> bool:
        """Whether somebody may look at flows."""
        return self.hooks is None or self.hooks.watched

    def show(self, flow: http.HTTPFlow, context: RequestContext) -> None:
        """Write down on the flow how its request stands, and have that seen, if somebody may look at flows."""
        if self.is_watched():
            annotate(flow, context)
            self.flows.changed(flow)

    def _unfinished(self) -> int:
        """Requests that run or wait, and answers that their clients have not taken yet."""
        unsent = sum(transports.unsent_to(client_id) > 0 for client_id in transports.handlers())
        return max(len(self.gateway.live), unsent)
