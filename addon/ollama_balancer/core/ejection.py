"""Ejects agents that fail and lets them back in through a probe and a slow start: `health`, applied to the fleet."""

import logging
import math

from .agent import Agent
from .events import EventKind
from .fleet import Fleet
from .health import EJECTION_THRESHOLD, SLOW_START_SECONDS, Phase
from .leases import Lease, SlotLease

logger = logging.getLogger(__name__)


class Ejection:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._unwell: dict[Agent, None] = {}
        """Agents that are ejected or in slow start."""

    def failed(self, lease: Lease, reason: str) -> None:
        """The agent failed the request, which still holds its lease: count a failure. See `health`."""
        agent = lease.agent
        if lease.model is None or agent.removed:
            return
        half_open = agent.half_open_lease is lease
        again = agent.health.phase is not Phase.HEALTHY
        now, chance = self._fleet.clock(), self._fleet.chance()
        if agent.health.failed(
            now, reason, chance=chance, half_open=half_open, may_eject=half_open or self._can_spare_one()
        ):
            seconds = agent.health.until - now
            failures = (
                "the half-open probe failed" if again else f"{agent.health.consecutive_failures} failures in a row"
            )
            logger.warning("Agent %s is ejected for %.0f s: %s, the last: %s.", agent.name, seconds, failures, reason)
            self._fleet.on_event(agent.name, EventKind.EJECTED, f"for {seconds:.0f} s: {failures}, the last: {reason}")
            agent.stats.ejections += 1
            self.gate(agent)
            self._fleet.eligibility_changed(agent)
        elif agent.health.phase is Phase.SLOW_START or (
            agent.health.phase is Phase.HEALTHY and agent.health.consecutive_failures >= EJECTION_THRESHOLD
        ):
            self._fleet.avoidance.fails(agent)

    def succeeded(self, lease: Lease) -> None:
        """The agent served the request, which still holds its lease."""
        agent = lease.agent
        if lease.model is None:
            return
        if isinstance(lease, SlotLease):
            self._fleet.avoidance.served(agent, lease.model, lease.demand.runner)
        if agent.health.succeeded(self._fleet.clock(), half_open=agent.half_open_lease is lease) and not agent.removed:
            logger.info(
                "Agent %s is back, in slow start: for %g s it gets no more requests than it can run at once.",
                agent.name,
                SLOW_START_SECONDS,
            )
            self._fleet.on_event(agent.name, EventKind.BACK, "it has answered; slow start")
            self.gate(agent)
            self._fleet.eligibility_changed(agent)

    def start_slowly(self, agent: Agent) -> None:
        """An agent that was offline is online again: let it start slowly, unless it is ejected."""
        if agent.health.phase is not Phase.EJECTED:
            agent.health.start_slowly(self._fleet.clock())
            self.gate(agent)

    def gate(self, agent: Agent) -> None:
        """Close or open the agent to new requests, as its health allows now."""
        if agent.removed:
            return
        health, now = agent.health, self._fleet.clock()
        match health.phase:
            case Phase.HEALTHY:
                closed = False
                self._unwell.pop(agent, None)
            case Phase.EJECTED:
                closed = now < health.until or agent.half_open_lease is not None
            case Phase.SLOW_START:
                at_once = agent.fixed_slots or max((learner.limit for learner in agent.learners.values()), default=2)
                closed = bool(agent.loaders) or sum(agent.running.values()) >= at_once
        if health.phase is not Phase.HEALTHY:
            self._unwell[agent] = None
            if health.until > now:
                self._fleet.expire_by(health.until)
        if closed is not agent.closed:
            agent.closed = closed
            self._fleet.eligibility_changed(agent)

    def forget(self, agent: Agent) -> None:
        """The agent has left."""
        self._unwell.pop(agent, None)

    def expire(self, now: float) -> None:
        for agent in list(self._unwell):
            if agent.health.passed(now):
                logger.info("Agent %s is healthy again.", agent.name)
            self.gate(agent)

    def next_expiry(self, now: float) -> float:
        return min((agent.health.until for agent in self._unwell if agent.health.until > now), default=math.inf)

    def _can_spare_one(self) -> bool:
        """Whether at most half of the available agents would be ejected after one more ejection."""
        usable = sum(agent.available for agent in self._fleet.agents.values())
        ejected = sum(agent.available and agent.health.phase is Phase.EJECTED for agent in self._unwell)
        return 2 * (ejected + 1) <= usable
