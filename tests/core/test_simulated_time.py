"""A thousand agents and a hundred thousand requests in simulated time: the line and health keep their rules."""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from heapq import heappop, heappush
from itertools import count

import pytest

from agent_reporter.wire import ModelEntry
from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Agent, Status
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.health import Phase
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.queue import QueueFullError, RequestQueue
from ollama_balancer.core.scheduler import Scheduler
from ollama_balancer.core.tickets import QueueKey
from tests.core.fakes import Clock, new_registry, report

AGENTS = 1000
REQUESTS = 100_000
MODELS = 20
CLIENTS = 50
RATE = 1500.0
"""Requests a second; the fleet serves about 1,400 of them when all is well."""

RETRIES = 3


class Simulation:
    """Events in the order of their time. What happens is drawn from one seed."""

    def __init__(self, seed: int, mode: str) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock(0.0)
        self.registry = new_registry(self.clock, mode=mode, stale_after=1e9, chance=self.rng.random)
        self.queue = RequestQueue(self.clock, size=20_000)
        self.scheduler = Scheduler(self.registry, self.queue)
        self.events: list[tuple[float, int, object]] = []
        self.numbers = count()
        self.outcomes: Counter[str] = Counter()
        self.running: Counter[tuple[Agent, str]] = Counter()
        self.sick: set[Agent] = set()
        self.queues: defaultdict[tuple[QueueKey, str], deque[int]] = defaultdict(deque)
        """Who waits at a place, by client, as the line ought to have them."""
        self.most_ejected = 0
        self.longest_line = 0
        models = [f"m{n}:latest" for n in range(MODELS)]
        for n in range(AGENTS):
            agent, _ = self.registry.register(f"a{n}", Address(f"10.0.{n // 250}.{n % 250 + 1}", 11434))
            names = self.rng.sample(models, self.rng.randint(1, 6))
            self.registry.update_metrics(
                agent.id,
                report(
                    cpu=self.rng.randrange(100),
                    num_parallel=self.rng.choice((1, 2, 4)),
                    models=[ModelEntry(name=name) for name in names],
                ),
            )
        self.models = models
        self.agents = list(self.registry)

    def at(self, seconds: float, event: object) -> None:
        heappush(self.events, (self.clock.now + seconds, next(self.numbers), event))

    def run(self) -> None:
        time = 0.0
        for number in range(REQUESTS):
            time += self.rng.expovariate(RATE)
            self.at(time, ("arrive", number))
        for n in range(int(time)):
            self.at(n + 0.5, ("trouble",))
        events = 0
        while self.events:
            self.clock.now, _, event = heappop(self.events)
            assert isinstance(event, tuple)
            self.registry.expire()
            getattr(self, event[0])(*event[1:])
            events += 1
            if events % 500 == 0:
                self.check()
        self.check()

    # What happens

    def arrive(self, number: int) -> None:
        model = self.models[min(int(self.rng.expovariate(0.2)), MODELS - 1)]
        client = f"c{min(int(self.rng.expovariate(0.1)), CLIENTS - 1)}"
        self.route(number, model, client, ())

    def route(self, number: int, model: str, client: str, tried: tuple[Agent, ...]) -> None:
        agent = self.scheduler.find(Demand(model), tried).agent
        if agent is not None:
            self.begin(number, client, tried, self.registry.limiter.take(agent, model))
            return
        if len(tried) > RETRIES or not self.registry.selection.could_serve(model, tried):
            self.outcomes["refused"] += 1
            return
        key = QueueKey(model, tried=frozenset(tried))
        queue = self.queues[key, client]

        def notify(lease: Lease | None) -> None:
            assert queue.popleft() == number, "first in, first out"
            if lease is None:
                self.outcomes["refused"] += 1
            else:
                self.begin(number, client, tried, lease)

        try:
            ticket = self.queue.join(key, client, notify)
        except QueueFullError:
            self.outcomes["queue full"] += 1
            return
        queue.append(number)
        if self.rng.random() < 0.02:

            def leave() -> None:
                if self.queue.leave(ticket):
                    queue.remove(number)
                    self.outcomes["left"] += 1

            self.at(self.rng.uniform(0, 5), ("call", leave))

    def call(self, function: object) -> None:
        assert callable(function)
        function()

    def begin(self, number: int, client: str, tried: tuple[Agent, ...], lease: Lease) -> None:
        agent, model = lease.agent, lease.model
        assert model is not None
        assert agent not in tried, "never twice to one agent"
        assert agent.available
        self.running[agent, model] += 1
        assert self.running[agent, model] <= agent.fixed_slots, "never one more than it runs"
        if agent.health.phase is Phase.EJECTED:
            assert agent.half_open_lease is lease, "one request tries it"
        self.at(0.05, ("first_byte", lease))
        fails = agent in self.sick or self.rng.random() < 0.001
        self.at(0.1 if fails else self.rng.uniform(0.2, 2.5), ("end", number, client, tried, lease, fails))

    def first_byte(self, lease: Lease) -> None:
        if lease.agent not in self.sick:
            lease.began()

    def end(self, number: int, client: str, tried: tuple[Agent, ...], lease: Lease, fails: bool) -> None:
        agent, model = lease.agent, lease.model
        assert model is not None
        self.running[agent, model] -= 1
        if fails:
            self.registry.ejection.failed(lease, "it failed")
            lease.release(Outcome.FAILED)
            self.route(number, model, client, (*tried, agent))
        else:
            self.registry.ejection.succeeded(lease)
            lease.release()
            self.outcomes["served"] += 1

    def trouble(self) -> None:
        """Each second some agents fall sick, go away, drain, and get well."""
        for agent in self.rng.sample(self.agents, 12):
            match self.rng.randrange(4):
                case 0:
                    self.sick.add(agent)
                    self.at(self.rng.uniform(5, 40), ("call", lambda agent=agent: self.sick.discard(agent)))
                case 1:
                    self.registry.liveness.unreachable(agent, "gone")
                    self.at(
                        self.rng.uniform(1, 10), ("call", lambda agent=agent: self.registry.liveness.reached(agent))
                    )
                case 2:
                    self.registry.drain(agent)
                    self.at(self.rng.uniform(1, 10), ("call", lambda agent=agent: self.registry.resume(agent)))
                case _:
                    self.sick.discard(agent)
        for agent in self.agents:
            if agent.probed:
                self.registry.liveness.reached(agent)

    # What holds at every moment

    def check(self) -> None:
        self.longest_line = max(self.longest_line, len(self.queue))
        assert len(self.queue) == sum(map(len, self.queues.values()))
        for key in self.queue.active_keys():
            assert self.scheduler.find(Demand(key.model), key.tried).agent is None, (
                "an agent is free and somebody waits for it"
            )
            assert not self.scheduler.is_hopeless(key)
        online = sum(agent.online for agent in self.agents)
        ejected = sum(agent.status is Status.EJECTED for agent in self.agents)
        self.most_ejected = max(self.most_ejected, ejected)
        assert ejected <= online / 2 + 1
        for agent in self.agents:
            assert agent.in_flight == sum(agent.running.values())
            assert all(count > 0 for count in agent.loaders.values())


@pytest.mark.chaos
def test_a_hundred_thousand_requests_on_a_thousand_agents() -> None:
    simulation = Simulation(seed=11, mode="metrics")
    simulation.run()
    outcomes = simulation.outcomes
    assert sum(outcomes.values()) == REQUESTS
    assert outcomes["served"] > 0.95 * REQUESTS, outcomes
    assert simulation.longest_line > 500, "there was a line"
    assert simulation.most_ejected > 20, "agents were ejected"
    assert len(simulation.queue) == 0
    assert not simulation.queue._models
    assert all(agent.in_flight == len(agent.loaders) == 0 for agent in simulation.agents)
    assert all(agent.running == {} and not agent.full for agent in simulation.agents)
