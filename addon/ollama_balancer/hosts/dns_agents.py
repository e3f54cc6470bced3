"""Agents that are found in DNS: each address of a host name is one, and the name is resolved again and again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from agent_reporter.resolving import in_thread

from ..core.address import Address, DnsName
from ..core.agent import Agent, Source
from ..core.registry import AgentRegistry
from ..core.static_agents import AgentSpec, configure

logger = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds from one look-up of a name to the next."""

TIMEOUT = 4.0
"""Seconds for a look-up; one that takes longer goes on, and counts as failed until it ends."""

MAX_NAMES = 32
"""Names, each of which may occupy a thread."""

MAX_ADDRESSES = 256
"""Agents of one name."""

type LookUp = Callable[[str], Awaitable[list[str]]]


async def look_up(host: str) -> list[str]:
    """The IP addresses of a name. Raises OSError. Of both families the IPv4 ones, as they are the same hosts."""
    work = functools.partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
    infos = await in_thread(work, "DNS look-up")
    found = dict.fromkeys(str(info[4][0]) for info in infos if info[0] in (socket.AF_INET, socket.AF_INET6))
    usable = [ip for ip in found if "%" not in ip and not ipaddress.ip_address(ip).is_unspecified]
    return [ip for ip in usable if ":" not in ip] or usable


@dataclass(eq=False)
class _Name:
    """A name and the agents found under it."""

    name: str
    spec: AgentSpec
    agents: dict[str, Agent] = field(default_factory=dict)
    """By address: those of the last answer."""
    vanished: dict[str, Agent] = field(default_factory=dict)
    """Those that still run requests."""
    left_out: set[str] = field(default_factory=set)
    """Addresses of the last answer that cannot be agents."""
    lookup: asyncio.Future[list[str]] | None = None
    problem: str = ""
    """As it was logged."""

    @property
    def where(self) -> DnsName:
        assert isinstance(self.spec.where, DnsName)
        return self.spec.where


class DnsAgents:
    """Keeps the registry's agents as DNS has them. `look_up` gives the IP addresses of a name or raises OSError.

    An answer without an address, and none, changes nothing: name servers fail more often than whole fleets vanish.
    """

    def __init__(self, registry: AgentRegistry, look_up: LookUp = look_up) -> None:
        self.registry = registry
        self.first_round = asyncio.Event()
        """Set when each name has been looked up once, and its agents have been probed."""
        self.on_new: Callable[[Agent], Awaitable[None]] | None = None
        """Called with each agent of the first round: probes it."""
        self._look_up = look_up
        self._names: dict[str, _Name] = {}
        self._wake = asyncio.Event()

    @staticmethod
    def check(specs: Mapping[str, AgentSpec]) -> None:
        """ValueError: there are too many names."""
        if sum(isinstance(spec.where, DnsName) for spec in specs.values()) > MAX_NAMES:
            raise ValueError(f"more than {MAX_NAMES} names with dns+http://: give some of the hosts by address")

    def apply(self, specs: Mapping[str, AgentSpec]) -> None:
        """Look these names up from now on. Agents of others leave; their running requests finish."""
        wanted = {name: spec for name, spec in specs.items() if isinstance(spec.where, DnsName)}
        for name, known in list(self._names.items()):
            spec = wanted.get(name)
            if spec is None or spec.where != known.where:
                self._forget(self._names.pop(name))
        for name, spec in wanted.items():
            if name not in self._names:
                self._names[name] = _Name(name, spec)
                self._wake.set()
                continue
            known = self._names[name]
            if known.spec != spec:
                was_drained, known.spec = known.spec.drained, spec
                for agent in known.agents.values():
                    if not agent.removed:
                        configure(self.registry, agent, spec, was_drained=was_drained)

    async def run(self) -> None:
        """Resolve the names until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._wake.clear()
                due = loop.time() + INTERVAL
                try:
                    new = await self.resolve()
                    if not self.first_round.is_set() and self.on_new is not None:
                        await asyncio.gather(*map(self.on_new, new))
                except Exception:
                    logger.exception("Resolving the agents' names failed; the next try is in %g s.", INTERVAL)
                self.first_round.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await self._wake.wait()
        finally:
            self.first_round.set()

    async def resolve(self) -> list[Agent]:
        """Resolve all names once. Returns the agents that are new."""
        return [agent for new in await asyncio.gather(*map(self._refresh, list(self._names.values()))) for agent in new]

    async def _refresh(self, name: _Name) -> list[Agent]:
        result = await self._resolve(name)
        new: list[Agent] = []
        if self._names.get(name.name) is name:
            if isinstance(result, str):
                self._failed(name, result)
            else:
                new = self._found(name, result)
            self._remove_idle(name)
        return new

    async def _resolve(self, name: _Name) -> list[str] | str:
        """Its addresses, or why there are none."""
        try:
            if name.lookup is None:
                name.lookup = asyncio.ensure_future(self._look_up(name.where.host))
                name.lookup.add_done_callback(lambda lookup: lookup.cancelled() or lookup.exception())
            done, _ = await asyncio.wait((name.lookup,), timeout=TIMEOUT)
            if not done:
                return f"no answer within {TIMEOUT:g} s"
            return name.lookup.result() or "it has no address"
        except (OSError, UnicodeError) as e:
            return (e.strerror if isinstance(e, OSError) else None) or str(e)
        finally:
            if name.lookup is not None and name.lookup.done():
                name.lookup = None

    def _failed(self, name: _Name, problem: str) -> None:
        if problem == name.problem:
            return
        name.problem = problem
        if name.agents:
            logger.warning(
                "%s cannot be resolved (%s): its known hosts stay (%d). Trying again every %g s.",
                name.where.host,
                problem,
                len(name.agents),
                INTERVAL,
            )
        else:
            logger.warning(
                "%s cannot be resolved (%s), so %s has no agents yet: check the name in balancer_agents or the fleet "
                "file, and that this machine's name servers know it. Trying again every %g s.",
                name.where.host,
                problem,
                name.where.url,
                INTERVAL,
            )

    def _found(self, name: _Name, ips: list[str]) -> list[Agent]:
        if len(ips) > MAX_ADDRESSES:
            problem = f"{len(ips)} addresses, of which {MAX_ADDRESSES} are used"
            if name.problem != problem:
                logger.warning("%s has %s: use several names.", name.where.host, problem)
            name.problem = problem
            ips = sorted(ips, key=lambda ip: (ip not in name.agents, ip))[:MAX_ADDRESSES]
        elif name.problem:
            logger.info("%s is resolved; addresses: %d.", name.where.host, len(ips))
            name.problem = ""
        for ip in [ip for ip in name.agents if ip not in ips]:
            agent = name.agents.pop(ip)
            if not agent.removed:
                name.vanished[ip] = agent
                logger.info("Agent %s leaves: %s no longer has its address.", agent.name, name.where.host)
                # Its host may go on under another name, such as its reporter's.
                self.registry.drain(agent, configured=True, alone=True)
        name.left_out.intersection_update(ips)
        new = [self._join(name, ip) for ip in ips if ip not in name.agents]
        return [agent for agent in new if agent is not None]

    def _join(self, name: _Name, ip: str) -> Agent | None:
        """The agent if it is new."""
        agent = name.vanished.pop(ip, None)
        if agent is not None and not agent.removed:
            name.agents[ip] = agent
            if not name.spec.drained:
                self.registry.end_configured_drain(agent, alone=True)
            configure(self.registry, agent, name.spec, was_drained=False)
            return None
        agent_name = f"{name.name}-{ip}"
        try:
            known = self.registry.get(agent_name)
            if known is not None and known.source is Source.STATIC:
                raise ValueError(f"there is an agent called {agent_name}: give one of them another name")
            address = Address(ip, name.where.port, name.where.host)
            agent, _ = self.registry.register(agent_name, address, Source.STATIC)
        except ValueError as e:
            if ip not in name.left_out:
                name.left_out.add(ip)
                logger.error("%s is left out of the agents of %s: %s", ip, name.where.host, e)
            return None
        logger.info("Agent %s joins: %s has its address.", agent.name, name.where.host)
        name.agents[ip] = agent
        configure(self.registry, agent, name.spec, was_drained=False)
        return agent

    def _remove_idle(self, name: _Name) -> None:
        for ip, agent in list(name.vanished.items()):
            if not agent.in_flight or agent.removed:
                self.registry.remove(agent)
                del name.vanished[ip]

    def _forget(self, name: _Name) -> None:
        for agent in (*name.agents.values(), *name.vanished.values()):
            if name.spec.drained:
                self.registry.end_configured_drain(agent)
            self.registry.remove(agent)
