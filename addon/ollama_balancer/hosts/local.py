"""Finds agents that are the same host under several names or addresses.

Elsewhere a host is one IP address and port. A server of this machine may be reached by each of its addresses, unless
another server listens there: then the listening socket decides.
"""

import asyncio
from collections.abc import Collection, Hashable

import psutil

from agent_reporter.addresses import is_loopback, own_ips, plain_ip

from ..core.address import Address
from ..core.agent import Agent
from ..core.registry import AgentRegistry

EVERYWHERE = ("0.0.0.0", "::")
THIS_MACHINE = "this machine"


RECHECK_SECONDS = 10.0
"""Seconds for which the listening sockets are cached; reading them takes milliseconds."""


class Locator:
    """Locates the hosts of agents and tells the registry."""

    def __init__(self, registry: AgentRegistry) -> None:
        self._registry = registry
        self._local_agents: dict[int, dict[Agent, tuple[str, Address]]] = {}
        """Agents on this machine, by port: the address they were reached at, and their configured one."""
        self._listening: dict[int, tuple[float, frozenset[str]]] = {}
        """The addresses that are listened on explicitly, by port, and when they were read."""
        self._own: frozenset[str] | None = None

    async def locate(self, agent: Agent, address: Address, peer: str) -> None:
        """The agent was reached at that IP address."""
        ip, port = plain_ip(peer), address.port
        if agent.address != address or agent.removed or not ip:
            return
        if not await self._is_local(ip):
            self._local_agents.get(port, {}).pop(agent, None)
            self._registry.located(agent, (ip, port))
            return
        local_agents = self._local_agents.setdefault(port, {})
        if local_agents.get(agent) == (ip, address) and agent.host_key is not None and agent.online:
            return
        local_agents[agent] = ip, address
        for other in [each for each, (_, at) in local_agents.items() if each.removed or each.address != at]:
            del local_agents[other]
        if all(reached_at == ip for reached_at, _ in local_agents.values()):
            for each in list(local_agents):
                self._registry.located(each, (ip, port))
            return
        seen_at, listening = self._listening.get(port, (0.0, frozenset[str]()))
        if ip in listening and self._registry.clock() - seen_at < RECHECK_SECONDS:
            self._registry.located(agent, local_key(ip, port, listening))
            return
        listening = await asyncio.to_thread(listening_at, port)
        self._listening[port] = (self._registry.clock(), listening)
        for each, (reached_at, _) in list(local_agents.items()):
            self._registry.located(each, local_key(reached_at, port, listening))

    async def _is_local(self, ip: str) -> bool:
        if is_loopback(ip):
            return True
        if self._own is None:
            self._own = await asyncio.to_thread(own_ips)
        return ip in self._own


def local_key(ip: str, port: int, listening: Collection[str]) -> Hashable:
    """The key of a server of this machine, given the addresses that are listened on."""
    return (ip, port) if ip in listening else (THIS_MACHINE, port)


def listening_at(port: int) -> frozenset[str]:
    """The addresses on which a socket listens explicitly for that port; empty if unknown."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return frozenset()
    found = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port}
    return frozenset(plain_ip(ip) for ip in found if ip not in EVERYWHERE)
