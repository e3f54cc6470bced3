"""Whether agents are online, from their reports, the probes of them and the requests to them.

An agent is online when a probe (not older than `PROBE_GRACE`) got an answer, or a report (not older than `stale_after`)
says that its Ollama answers and the balancer gets through to it: something has, and nothing has failed to since. A
request that could not reach it, or a report that its Ollama is down, ends that at once. Who reports and is not reached
is `unreachable`.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from .agent import Agent, Status
from .avoidance import REFUSED_SECONDS
from .ejection import Ejection
from .events import EventKind
from .fleet import Fleet
from .limiter import ConcurrencyLimiter

if TYPE_CHECKING:
    from agent_reporter.wire import AgentMetrics

logger = logging.getLogger(__name__)

PROBE_GRACE = 13.0
"""Seconds for which a probe's answer holds: two missed probes, and a silent agent is offline within 15 s."""


class Liveness:
    """`stale_after` is the seconds for which a report counts."""

    def __init__(self, fleet: Fleet, ejection: Ejection, limiter: ConcurrencyLimiter, stale_after: float) -> None:
        self._fleet = fleet
        self._ejection = ejection
        self._limiter = limiter
        self.stale_after = stale_after
        # Both in the order of arrival, so that what expires first is in front.
        self._reports: OrderedDict[Agent, float] = OrderedDict()
        self._probes: OrderedDict[Agent, float] = OrderedDict()
        self._refused: dict[Agent, float] = {}
        """Until when agents are not used because they refused the balancer's credentials."""

    def report_received(self, agent: Agent, metrics: AgentMetrics, now: float) -> None:
        """Store the agent's metrics."""
        agent.report_received(metrics, now)
        self._reports[agent] = now
        self._reports.move_to_end(agent)
        self._fleet.expire_by(now + self.stale_after)

    def reports(self, agent: Agent, metrics: AgentMetrics) -> None:
        """Apply what a received report says about the agent's Ollama."""
        if metrics.ollama_ok is False:
            self.lost(agent, "its reporter says that Ollama does not answer there")
        elif not agent.reported_alive:
            self._found(agent, "reports", reported=True)
            if not agent.reachable:
                self._fleet.on_unproven(agent)

    def reached(self, agent: Agent) -> None:
        """The agent answered a probe, or a request."""
        if agent.removed:
            return
        now = self._fleet.clock()
        self._probes[agent] = now
        self._probes.move_to_end(agent)
        self._fleet.expire_by(now + PROBE_GRACE)
        if not agent.probed:
            self._found(agent, "answers", probed=True)
        agent.reached()

    def unreachable(self, agent: Agent, reason: str) -> None:
        """A request or a probe could not connect: the agent is not online until something gets through."""
        self.lost(agent, reason, found_nobody=True)

    def silent(self, agent: Agent, reason: str) -> None:
        """A probe got no usable answer. The agent goes offline after `PROBE_GRACE` if something got through before."""
        if agent.removed:
            return
        now = self._fleet.clock()
        agent.unreached = reason
        if agent.silent_since is None:
            agent.silent_since = now
        if not agent.online or (not agent.probed and now - agent.silent_since >= PROBE_GRACE):
            self.lost(agent, reason, found_nobody=True)

    def refuses(self, agent: Agent, reason: str, seconds: float | None = None) -> None:
        """The agent, or a proxy in front of it, refused the balancer's credentials: it is not used for so long."""
        seconds = REFUSED_SECONDS if seconds is None else seconds
        if agent.removed:
            return
        if agent.refusal is None:
            logger.warning(
                "Agent %s (%s) is unauthorized and not used for %g s: %s.", agent.name, agent.address, seconds, reason
            )
            self._fleet.on_event(agent.name, EventKind.UNAUTHORIZED, reason)
        agent.refusal = reason
        until = self._fleet.clock() + seconds
        until = self._refused[agent] = max(until, self._refused.get(agent, until))
        self._fleet.expire_by(until)
        self._fleet.eligibility_changed(agent)

    def needs_probe(self, agent: Agent) -> bool:
        """Whether the agent has to be probed: it has no recent report, or its models are not known."""
        if agent.models is None or not agent.online or agent.metrics is None or agent.metrics.loaded_models is None:
            return True
        return self._fleet.clock() - agent.metrics_at > self.stale_after * 2 / 3

    def lost(self, agent: Agent, reason: str, *, found_nobody: bool = False, refused: bool = False) -> None:
        """The agent is not online: it is out of reach, refused the balancer, or no longer reports to be alive."""
        fleet, was_online = self._fleet, agent.online
        if not refused:
            agent.refusal = None
            self._refused.pop(agent, None)
        fleet.avoidance.forget(agent)
        agent.probed = False
        self._probes.pop(agent, None)
        if found_nobody:
            agent.reachable, agent.unreached = False, reason
        else:
            agent.reported_alive = False
        status = agent.status
        if was_online or status is not agent.logged_status:
            agent.offline_reason = reason
            self._fleet.on_event(agent.name, EventKind(status), reason)
            what = "not reachable" if agent.logged_status is None and status is Status.OFFLINE else status
            logger.warning("Agent %s (%s) is %s: %s.", agent.name, agent.address, what, reason)
            agent.logged_status = status
        if was_online:
            self._limiter.start_over(agent)
            agent.memory_unknown()
            fleet.memory_changed(agent)
            fleet.came_or_went(agent)
            fleet.eligibility_changed(agent)
            fleet.settle_aliases(agent)

    def forget(self, agent: Agent) -> None:
        """The agent has left."""
        self._reports.pop(agent, None)
        self._probes.pop(agent, None)
        self._refused.pop(agent, None)

    def expire(self, now: float) -> None:
        self._expire_reports(now)
        self._expire_probes(now)
        for agent in [agent for agent, until in self._refused.items() if until <= now]:
            del self._refused[agent]
            agent.refusal = None
            self._fleet.eligibility_changed(agent)

    def next_expiry(self, now: float) -> float:
        next_report = next(iter(self._reports.values()), math.inf) + self.stale_after
        next_probe = next(iter(self._probes.values()), math.inf) + PROBE_GRACE
        return min(next_report, next_probe, *self._refused.values())

    def _found(self, agent: Agent, how: str, *, reported: bool = False, probed: bool = False) -> None:
        was_online = agent.online
        agent.reported_alive = agent.reported_alive or reported
        agent.probed = agent.probed or probed
        if not was_online and agent.online:
            if agent.was_online or agent.logged_status is not None:  # else it is only new
                self._fleet.on_event(agent.name, EventKind.ONLINE, f"it {how}")
            agent.logged_status = Status.ONLINE
            if agent.draining:
                until = "its reporter registers" if agent.draining_until_registration else "it is resumed"
                words = f"{how} and is still draining: it gets no new requests until {until}"
            else:
                words = f"is online: it {how}"
            logger.info("Agent %s (%s) %s.", agent.name, agent.address, words)
            self._fleet.came_or_went(agent)
            if agent.was_online:
                self._ejection.start_slowly(agent)
            agent.was_online = True
            self._fleet.settle_aliases(agent)
        self._fleet.eligibility_changed(agent)

    def _expire_reports(self, now: float) -> None:
        while self._reports:
            agent, at = next(iter(self._reports.items()))
            if now < at + self.stale_after:
                break
            del self._reports[agent]
            agent.fresh = False
            if agent.reported_alive:
                agent.reported_alive = False
                if not agent.probed:
                    agent.reported_alive = True
                    self.lost(agent, f"no report for {self.stale_after:g} s")
            for pool in agent.pools:
                pool.changed(agent)

    def _expire_probes(self, now: float) -> None:
        while self._probes:
            agent, at = next(iter(self._probes.items()))
            if now < at + PROBE_GRACE:
                break
            del self._probes[agent]
            agent.probed = False
            if not agent.online:
                agent.probed = True
                if agent.refusal is not None:
                    self.lost(agent, agent.refusal, refused=True)
                elif agent.unreached:
                    self.lost(agent, f"no answer to probes: {agent.unreached}", found_nobody=True)
                else:
                    self.lost(agent, "no answer to probes")
