"""The agents that the configuration names: `balancer_agents` and the fleet file."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from dataclasses import dataclass

from .address import Address, DnsName
from .agent import Agent, Source
from .registry import AgentRegistry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AgentSpec:
    """What the configuration says of an agent, or of all that are found under a name."""

    where: Address | DnsName
    slots: int | None = None
    """None: as for all agents; 0: what its report says, else learned."""
    drained: bool = False


class StaticAgents:
    """Keeps the registry's static agents as the configuration has them, those that are found in DNS apart."""

    def __init__(self, registry: AgentRegistry) -> None:
        self._registry = registry
        self._specs: dict[str, AgentSpec] = {}
        """As applied."""

    def check(self, specs: Mapping[str, AgentSpec]) -> None:
        """Whether these could be applied. ValueError says why not."""
        wanted = [name for name, spec in specs.items() if isinstance(spec.where, Address)]
        self._registry.check(wanted, [agent for agent in self._unnamed(wanted) if agent.source is Source.STATIC])

    def apply(self, specs: Mapping[str, AgentSpec]) -> bool:
        """Register these agents, change what has changed, and remove the others. Returns whether any came or moved.

        Running requests finish on those that are removed.
        """
        wanted = {name: spec for name, spec in specs.items() if isinstance(spec.where, Address)}
        if wanted == self._specs:
            return False
        unnamed, before, self._specs = self._unnamed(wanted), self._specs, wanted
        for each in unnamed:
            if each.source is Source.STATIC:
                if before[each.name].drained:
                    self._registry.end_configured_drain(each)  # for its host's other names
                self._registry.remove(each)
            else:
                _leave_alone(self._registry, each)
        any_new = False
        for name, spec in wanted.items():
            agent, former = self._registry.get(name), before.get(name)
            if agent is not None and former == spec:
                continue
            was_drained = agent is not None and former is not None and former.drained
            if agent is None or former is None or former.where != spec.where:
                agent = self._register(name, spec)
                any_new = True
            if agent is not None:
                configure(self._registry, agent, spec, was_drained=was_drained)
        return any_new

    def _register(self, name: str, spec: AgentSpec) -> Agent | None:
        assert isinstance(spec.where, Address)
        try:
            agent, _ = self._registry.register(name, spec.where, Source.STATIC)
        except ValueError as e:
            logger.error("Agent %s is left out: %s", name, e)
            return None
        return agent

    def _unnamed(self, wanted: Container[str]) -> list[Agent]:
        """Agents that the configuration has named until now and does no longer."""
        found = [self._registry.get(name) for name in self._specs if name not in wanted]
        return [agent for agent in found if agent is not None]


def configure(registry: AgentRegistry, agent: Agent, spec: AgentSpec, *, was_drained: bool) -> None:
    """Give an agent its slots, and begin or end the drain that the configuration asks for."""
    registry.configure_slots(agent, spec.slots)
    if spec.drained and not was_drained:
        registry.drain(agent, configured=True)
    elif was_drained and not spec.drained:
        registry.end_configured_drain(agent)


def _leave_alone(registry: AgentRegistry, agent: Agent) -> None:
    """The agent stays, as its reporter has registered it, but the configuration says nothing of it any more."""
    registry.configure_slots(agent, None)
    registry.end_configured_drain(agent)
