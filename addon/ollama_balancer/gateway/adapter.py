"""What the gateway needs of whoever speaks with clients, and with hosts."""

from __future__ import annotations

from typing import Protocol

from ..core.agent import Agent
from .context import RequestContext
from .messages import AgentRequest, ClientRequest


class Adapter(Protocol):
    """Speaks HTTP with clients, and with the agents that the gateway chooses."""

    def request(self, context: RequestContext) -> ClientRequest:
        """What is to be sent now."""

    def agent_request(self, context: RequestContext) -> AgentRequest:
        """The same as several agents are to get it."""

    def waiting(self, context: RequestContext) -> None:
        """The request has begun to wait in the queue."""

    def is_killed(self, context: RequestContext) -> bool:
        """Whether a person has ended it."""

    def cut(self, context: RequestContext) -> None:
        """Close the connection on which its answer comes, if there is one."""

    def client_is_slow(self, context: RequestContext) -> bool:
        """Whether there is something that the client has yet to take."""

    def read_client(self, context: RequestContext, on: bool) -> None:
        """Go on reading from the client, or let it wait."""

    async def drain_client(self, context: RequestContext) -> None:
        """Wait until the client has taken most of what was sent to it."""


class Prober(Protocol):
    """Asks hosts what the balancer wants to know of them."""

    async def probe(self, agent: Agent) -> bool:
        """See whether the host is there, and may be used."""

    async def refresh(self, agent: Agent) -> object:
        """See what models the host has."""

    async def refresh_loaded(self, agent: Agent, *, unloading: str | None, last: bool) -> bool:
        """See what models the host has loaded; whether there is nothing more to see (`load_checks`)."""

    async def loaded(self, agent: Agent) -> set[str] | None:
        """The canonical names of the models that the host has loaded; None if it does not say."""
