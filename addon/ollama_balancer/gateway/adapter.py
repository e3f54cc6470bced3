"""The interfaces through which the gateway reaches clients and hosts."""

from typing import Protocol

from ..core.agent import Agent
from .context import RequestContext
from .messages import AgentRequest, ClientRequest


class Adapter(Protocol):
    """Speaks HTTP with clients, and with the agents that the gateway chooses."""

    def request(self, context: RequestContext) -> ClientRequest:
        """The request as it is to be sent now."""

    def agent_request(self, context: RequestContext) -> AgentRequest:
        """The request as a fan-out sends it to several agents."""

    def waiting(self, context: RequestContext) -> None:
        """Called when the request enters the queue."""

    def is_killed(self, context: RequestContext) -> bool:
        """Whether a user killed the flow."""

    def cut(self, context: RequestContext) -> None:
        """Close the connection to the agent, if there is one."""

    def client_is_slow(self, context: RequestContext) -> bool:
        """Whether data for the client is still unsent."""

    def read_client(self, context: RequestContext, on: bool) -> None:
        """Resume or pause reading from the client."""

    async def drain_client(self, context: RequestContext) -> None:
        """Wait until most of what was sent to the client has left the buffer."""


class Prober(Protocol):
    """Queries hosts."""

    async def probe(self, agent: Agent) -> bool:
        """Check that the host is up and lets the balancer in."""

    async def refresh(self, agent: Agent) -> object:
        """Update the list of models on the host."""

    async def refresh_loaded(self, agent: Agent, *, unloading: str | None, last: bool) -> bool:
        """Update the list of loaded models; returns whether the check is complete (see `load_checks`)."""

    async def load(self, agent: Agent, model: str) -> bool:
        """Have the host load one of its models (a canonical name); returns whether it has."""

    async def unload(self, agent: Agent, model: str) -> bool:
        """Have the host unload one of its models (a canonical name) that is idle; returns whether it does."""

    async def loaded(self, agent: Agent) -> set[str] | None:
        """The canonical names of the models that the host has loaded; None if it does not say."""
