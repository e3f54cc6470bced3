from __future__ import annotations

import pytest

from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.concurrency import DOUBTS, LONGEST_PAUSE
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.registry import AgentRegistry
from tests.core.fakes import Clock, entries, fleet, new_registry
from tests.core.slot_host import SlotHost, Traffic


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> AgentRegistry:
    return new_registry(clock)


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
        while self.registry.selection.select("m:latest") is not None:
            self.sent.append(self.registry.limiter.take(self.agent, "m:latest"))
        self.most = max(self.most, len(self.sent))
        self.clock.now += 0.1
        self.registry.liveness.reached(self.agent)
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
    for _ in range(4000):
        host.step()
    above = 0
    for _ in range(2000):
        host.step()
        above += len(host.sent) > parallel
    assert agent.learners["m:latest"].proven == parallel
    assert agent.slots == parallel
    assert host.most <= parallel + 1, "no more than one in vain"
    assert above < 200, "and by now hardly ever"


def test_one_more_is_tried_again_when_the_host_may_have_changed(
    registry: AgentRegistry, agent: Agent, clock: Clock
) -> None:
    host = Host(registry, agent, clock, 1)
    while agent.slots_for("m:latest") == 2:
        host.step()
    assert len(host.sent) <= 2
    host.parallel = 3
    clock.now += LONGEST_PAUSE
    for _ in range(3000):
        host.step()
    assert agent.slots == 3


def test_a_host_that_runs_fewer_than_before_is_found_out() -> None:
    host = SlotHost(4, Traffic(), seed=1)
    host.run(100)
    assert host.learned == 4
    host.parallel = 2
    host.run(300)
    assert host.learned == 2


def test_an_end_that_is_seen_after_the_next_answer_has_begun_proves_nothing(
    registry: AgentRegistry, agent: Agent, clock: Clock
) -> None:
    registry.inventory.update_loaded(agent, entries("m"))
    running = registry.limiter.take(agent, "m:latest")
    running.began()
    for _ in range(20):
        clock.now += 3
        registry.liveness.reached(agent)
        registry.expire()
        following = (
            registry.limiter.take(agent, "m:latest") if registry.selection.has_free_slot(agent, "m:latest") else None
        )
        clock.now += 3
        if following is not None:
            following.began()
        clock.now += 0.05
        running.release()
        if following is None:
            following = registry.limiter.take(agent, "m:latest")
            following.began()
        running = following
    assert agent.slots == 1
    running.release()


def test_requests_that_overtake_each_other_once_prove_nothing(registry: AgentRegistry, agent: Agent) -> None:
    first, second = registry.limiter.take(agent, "m:latest"), registry.limiter.take(agent, "m:latest")
    second.began()
    assert agent.learners["m:latest"].proven == 1
    first.release()
    second.release()


def test_answers_in_one_piece_prove_an_overlap_when_one_overtakes_another(
    registry: AgentRegistry, agent: Agent, clock: Clock
) -> None:
    registry.inventory.update_loaded(agent, entries("m"))
    piece = Demand("m:latest", streams=False)
    first = registry.limiter.take(agent, "m:latest", piece)
    clock.now += 1
    second = registry.limiter.take(agent, "m:latest", piece)
    clock.now += 3
    second.release()
    assert agent.learners["m:latest"].proven == 1, "the end of the first may be on its way"
    clock.now += 2
    registry.expire()
    assert agent.learners["m:latest"].proven == 2
    first.release()


def test_failures_and_departures_prove_nothing(registry: AgentRegistry, agent: Agent, clock: Clock) -> None:
    for outcome in (Outcome.FAILED, Outcome.CANCELLED) * DOUBTS:
        first, second = registry.limiter.take(agent, "m:latest"), registry.limiter.take(agent, "m:latest")
        first.began()
        clock.now += 100
        registry.liveness.reached(agent)
        first.release(outcome)
        second.release(outcome)
    assert agent.slots_for("m:latest") == 2


def test_what_was_learned_is_forgotten_when_the_host_goes_away(
    registry: AgentRegistry, agent: Agent, clock: Clock
) -> None:
    host = Host(registry, agent, clock, 4)
    for _ in range(3000):
        host.step()
    assert agent.slots == 4
    registry.liveness.unreachable(agent, "gone")
    assert agent.slots is None
    for lease in host.sent:
        lease.release(Outcome.FAILED)
    assert agent.running == {}
    assert not agent.loaders


TRAFFIC = {
    "as many as there is room for": Traffic(),
    "now and then": Traffic(rate=0.1),
    "short answers": Traffic(prefill=(0.01, 0.03), decode=(0.05, 0.3)),
    "short answers over a bad network": Traffic(prefill=(0.01, 0.03), decode=(0.05, 0.3), jitter=0.01),
    "a bad network": Traffic(jitter=0.05),
    "long prompts": Traffic(prefill=(0.1, 20.0), decode=(1.0, 20.0)),
    "some in one piece": Traffic(streamed=0.5),
    "all in one piece": Traffic(streamed=0.0),
    "some are cut": Traffic(cut=0.2),
}


@pytest.mark.parametrize("parallel", [1, 2, 4])
@pytest.mark.parametrize("kind", TRAFFIC)
@pytest.mark.chaos
def test_what_is_learned_is_what_the_host_runs_and_the_others_wait_in_the_line(kind: str, parallel: int) -> None:
    host = SlotHost(parallel, TRAFFIC[kind], seed=parallel)
    host.run(900)
    assert host.learned == parallel
    host.watch()
    host.run(300)
    assert host.learned == parallel
    assert host.above < 0.2, "trials are seldom"


@pytest.mark.parametrize("seed", range(5))
def test_a_host_that_runs_four_is_known_to_after_a_few_dozen_requests(seed: int) -> None:
    host = SlotHost(4, Traffic(rate=0.4), seed)
    host.run(36)
    assert host.learned == 4


def test_a_model_that_is_new_to_a_host_begins_with_the_slots_that_others_were_seen_to_have(
    registry: AgentRegistry, agent: Agent, clock: Clock
) -> None:
    host = Host(registry, agent, clock, 4)
    for _ in range(3000):
        host.step()
    limit = agent.slots_for("m:latest")
    assert agent.slots_for("n:latest") == limit
    registry.limiter.take(agent, "n:latest")
    assert agent.learners["n:latest"].proven == 4
    assert agent.slots_for("n:latest") == limit
