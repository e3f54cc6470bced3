"""Detects agents that are one host under several names: one represents the host, so that it has one set of slots.

The others are its aliases, which get no request. Who stands for the host? One that is online; of those one that is not
drained by the end of its reporter; of those one that reports, since its slots and its load are known; of those the one
that came first. It stays so while it has requests in flight.
"""

from collections.abc import Hashable

from .agent import Agent


class SameHost:
    """Which agents are one host. A key is where a host listens: equal for two agents that are one."""

    def __init__(self) -> None:
        self._members: dict[Hashable, list[Agent]] = {}

    def of(self, agent: Agent) -> list[Agent]:
        """All that are the agent's host, itself included."""
        return list(self._members.get(agent.host_key, ())) or [agent]

    def move(self, agent: Agent, key: Hashable | None) -> list[Agent]:
        """Assign the agent to a host; None: unknown. Returns the agents whose alias state has changed."""
        if key == agent.host_key:
            return self.settle(agent)
        changed = []
        others = self._members.get(agent.host_key, [])
        if agent in others:
            others.remove(agent)
            if not others:
                del self._members[agent.host_key]
        agent.located(key)
        if agent.alias_of is not None:
            agent.alias_changed(None)
            changed.append(agent)
        if others:
            changed += self.settle(others[0])
        if key is not None:
            self._members.setdefault(key, []).append(agent)
            changed += self.settle(agent)
        return list(dict.fromkeys(changed))

    def settle(self, agent: Agent) -> list[Agent]:
        """Choose the host's representative anew. Returns the agents whose alias state has changed."""
        members = self._members.get(agent.host_key, ())
        if len(members) < 2 and agent.alias_of is None:
            return []
        first = min(members, key=_rank)
        now = next((member for member in members if member.alias_of is None and member.in_flight), None)
        if now is not None and now.online and not now.draining_until_registration:
            first = now
        changed = []
        for member in members:
            stands_for_it = None if member is first else first
            if member.alias_of is not stands_for_it:
                member.alias_changed(stands_for_it)
                changed.append(member)
        return changed


def _rank(agent: Agent) -> tuple[bool, bool, bool, int]:
    return (
        not agent.online or bool(agent.refusal),
        agent.draining_until_registration,
        agent.metrics is None,
        agent.number,
    )
