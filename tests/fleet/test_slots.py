from __future__ import annotations

import pytest

from ollama_balancer.fleet.agent import Agent, Outcome
from ollama_balancer.fleet.leases import Lease
from ollama_balancer.fleet.registry import AgentRegistry
from ollama_balancer.fleet.slots import DOUBTS, REFUTED_SECONDS
from tests.fleet.fakes import Clock, fleet


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> AgentRegistry:
    return AgentRegistry(clock)


@pytest.fixture
def agent(registry: AgentRegistry) -> Agent:
    return fleet(registry, "a")[0]


class Host:
    """A host that runs `parallel` requests at once, first in, first out, 10 s each, a byte after 0.1 s."""

    def __init__(self, registry: AgentRegistry, agent: Agent, clock: Clock, parallel: int) -> None:
        self.registry, self.agent, self.clock, self.parallel = registry, agent, clock, parallel
        self.sent: list[Lease] = []
        self.ends: dict[Lease, float] = {}
        self.most = 0

    def step(self) -> None:
        """A tenth of a second under full load: as much as the balancer allows is sent."""
        while self.registry.select("m:latest") is not None:
            self.sent.append(self.registry.take(self.agent, "m:latest"))
        self.most = max(self.most, len(self.sent))
        self.clock.now += 0.1
        self.registry.reached(self.agent)
        for lease in self.sent[: self.parallel]:
            if lease not in self.ends:
                lease.began()
                self.ends[lease] = self.clock.now + 10
        for lease in [lease for lease, end in self.ends.items() if end <= self.clock.now]:
            del self.ends[lease]
            self.sent.remove(lease)
            lease.release()


@pytest.mark.parametrize("parallel", [1, 2, 4, 8])
def test_what_a_host_runs_at_once_is_learned(
    registry: AgentRegistry, agent: Agent, clock: Clock, parallel: int
) -> None:
    host = Host(registry, agent, clock, parallel)
    for _ in range(5000):
        host.step()
    assert agent.learners["m:latest"].proven == parallel
    assert agent.slots == parallel
    assert host.most <= parallel + 1, "no more than one in vain"
    assert len(host.sent) == parallel, "and by now none"


def test_one_more_is_tried_again_when_the_host_may_have_changed(
    registry: AgentRegistry, agent: Agent, clock: Clock
) -> None:
    host = Host(registry, agent, clock, 1)
    while agent.slots_for("m:latest", clock()) == 2:
        host.step()
    assert len(host.sent) <= 2
    host.parallel = 3
    clock.now += REFUTED_SECONDS
    for _ in range(3000):
        host.step()
    assert agent.slots == 3


def test_requests_that_overtake_each_other_once_prove_nothing(registry: AgentRegistry, agent: Agent) -> None:
    first, second = registry.take(agent, "m:latest"), registry.take(agent, "m:latest")
    second.began()
    assert agent.learners["m:latest"].proven == 1
    first.release()
    second.release()


def test_an_answer_in_one_piece_proves_an_overlap_when_it_ends(registry: AgentRegistry, agent: Agent) -> None:
    for _ in range(2):
        first, second = registry.take(agent, "m:latest"), registry.take(agent, "m:latest")
        second.release()
        first.release()
    assert agent.learners["m:latest"].proven == 2


def test_failures_and_departures_prove_nothing(registry: AgentRegistry, agent: Agent, clock: Clock) -> None:
    for outcome in (Outcome.FAILED, Outcome.CANCELLED) * DOUBTS:
        first, second = registry.take(agent, "m:latest"), registry.take(agent, "m:latest")
        first.began()
        clock.now += 100
        registry.reached(agent)
        first.release(outcome)
        second.release(outcome)
    assert agent.slots_for("m:latest", clock()) == 2


def test_what_was_learned_is_forgotten_when_the_host_goes_away(
    registry: AgentRegistry, agent: Agent, clock: Clock
) -> None:
    host = Host(registry, agent, clock, 4)
    for _ in range(3000):
        host.step()
    assert agent.slots == 4
    registry.unreachable(agent, "gone")
    assert agent.slots is None
    for lease in host.sent:
        lease.release(Outcome.FAILED)
    assert agent.running == {}
    assert not agent.loaders
