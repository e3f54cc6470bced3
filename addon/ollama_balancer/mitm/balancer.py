"""The state that the addons share."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mitmproxy import ctx, http

from ..core.agent import Agent
from ..core.events import Events
from ..core.registry import AgentRegistry
from ..core.static_agents import AgentSpec, StaticAgents
from ..gateway.access import Access
from ..gateway.accounting import Accounting
from ..gateway.audit import AuditTrail
from ..gateway.callers import Caller
from ..gateway.clock import SteadyClock
from ..gateway.context import RequestContext
from ..gateway.gateway import Gateway
from ..gateway.memory_budget import PART, MemoryBudget, machine_memory
from ..gateway.networks import ClientNetworks
from ..gateway.tasks import run_in_background
from ..hosts.dns_agents import DnsAgents
from ..ollama import origins
from ..ollama.names import canonical_name
from ..settings.options import Settings
from ..storage.token import Token
from ..storage.usage import UsageLog
from ..text import one_line
from . import transports
from .adapter import FlowAdapter
from .compat import Unsupported
from .fastpath.hooks import HookFastPath
from .flow_list import FlowList
from .flow_store import StoredFlows
from .inspection.annotations import annotate
from .shutdown import Stopper

if TYPE_CHECKING:
    from ..gateway.tracing import Tracing
    from ..hosts.prober import Prober


def timed[A](hook: Callable[[A, http.HTTPFlow], None]) -> Callable[[A, http.HTTPFlow], None]:
    """Measure the time that a hook takes; its addon has the balancer as `balancer`."""

    @functools.wraps(hook)
    def counted(self: A, flow: http.HTTPFlow) -> None:
        began = time.perf_counter()
        hook(self, flow)
        self.balancer.gateway.request_metrics.processing_seconds += time.perf_counter() - began  # type: ignore[attr-defined]

    return counted


class Balancer:
    """One fleet behind one mitmproxy. It survives a reload of balancer.py, as do its agents and requests.

    `clock` returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.clock = clock or SteadyClock()
        self.via = f"1.1 ollama-balancer-{secrets.token_hex(8)}"
        self.settings: Settings | None = None
        self.token: Token | None = None
        self.registry = AgentRegistry(self.clock, must_reach=True, canonical_name=canonical_name)
        self.registry.fleet.on_unproven = self.probe_now
        self.agent_specs: dict[str, AgentSpec] = {}
        """What the options and the fleet file say of agents."""
        self.static_agents = StaticAgents(self.registry)
        self.dns_agents = DnsAgents(self.registry)
        self.stopper = Stopper(self._unfinished, lambda: ctx.master.shutdown())
        self.access = Access(self.clock)
        self.events = Events(time.time)
        self.audit = AuditTrail(self.clock)
        self.audit.on_refused = self._key_refused
        self.gateway = Gateway(
            self.registry, FlowAdapter(self.via, self.show), lambda: self.stopper.ending, self.access
        )
        self.gateway.router.is_observed = self.is_observed
        self.accounting = Accounting(self.registry, self.gateway.request_metrics)
        self.gateway.on_end = self.accounting.ended
        self.usage = UsageLog(self.accounting.ledger)
        self.access.limiter.used_today = self.accounting.ledger.used_today
        self.networks = ClientNetworks(self.clock)
        self.blocked_clients: set[str] = set()
        """Ids of client connections whose requests are refused because of their address."""
        self.budget = MemoryBudget(machine_memory() // PART)
        self.flows = FlowList(self.budget, self.blocked_clients)
        self.stored = StoredFlows(lambda: self.token)
        self.hooks: HookFastPath | None = None
        """The hook fast path; None before the addon is loaded."""
        self.unsupported: Unsupported | None = None
        """What is off with the installed versions; None if nothing works or the addon is not loaded."""
        self.tracing: Tracing | None = None
        """Makes traces of requests; None where they go nowhere."""
        self.prober: Prober | None = None
        self.running = False
        """Whether mitmproxy is running with the addon loaded."""

    @property
    def has_nothing_configured(self) -> bool:
        """Whether neither an option nor the fleet file names an agent."""
        return self.settings is not None and not self.agent_specs and not self.settings.demo

    def _key_refused(self, caller: Caller, reason: str) -> None:
        key, origin = caller.key, caller.address or "nowhere"
        self.events.key_refused(
            f"{reason} (from {origin})", key=None if key is None else key.name, origin=one_line(origin, 60)
        )

    def probe_now(self, agent: Agent) -> None:
        """Probe an agent that is new or has moved."""
        if self.prober is not None:
            run_in_background(self.prober.probe_now(agent), "first look")

    def allows(self, origin: str) -> bool:
        """Whether web pages of that origin may send requests."""
        return origins.allowed_origin(origin, self.settings.origins if self.settings else ())

    def is_observed(self) -> bool:
        """Whether anybody may look at flows, now or later."""
        return self.hooks is None or self.hooks.observed or self.stored.on

    def show(self, flow: http.HTTPFlow, context: RequestContext) -> None:
        """Update comment, marker and record of the flow, if flows are observed."""
        if self.is_observed():
            annotate(flow, context)
            self.flows.changed(flow)

    def _unfinished(self) -> int:
        """Running and waiting requests, or clients with unsent data if these are more."""
        unsent = sum(transports.unsent_to(client_id) > 0 for client_id in transports.handlers())
        return max(len(self.gateway.live), unsent)
