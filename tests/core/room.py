"""A fleet in the adaptive mode with a line before it, for tests."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ollama_balancer.core.agent import Agent
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.observations import AnswerObservation
from ollama_balancer.core.queue import RequestQueue
from ollama_balancer.core.scheduler import Scheduler
from ollama_balancer.core.tickets import QueueKey
from tests.core.fakes import Clock, entries, fleet, new_registry

MODEL = "m:latest"


class Room:
    """`granted` has who was given an agent from the line, in that order."""

    def __init__(self, *names: str, models: Sequence[str] = ("m",), slots: int = 0, known: bool = True) -> None:
        self.clock = Clock()
        self.registry = new_registry(self.clock, mode="adaptive", slots=slots, chance=random.Random(1).random)
        self.queue = RequestQueue(self.clock)
        self.scheduler = Scheduler(self.registry, self.queue)
        self.granted: dict[str, Lease | None] = {}
        self.agents = fleet(self.registry, *names)
        for agent in self.agents:
            self.registry.inventory.update_models(agent, entries(*models))
            if known:
                self.registry.inventory.update_loaded(agent, [])

    def find(self, demand: Demand | str = MODEL) -> Agent | None:
        return self.scheduler.find(Demand(demand) if isinstance(demand, str) else demand).agent

    def take(self, demand: Demand | str = MODEL) -> Lease:
        demand = Demand(demand) if isinstance(demand, str) else demand
        agent = self.find(demand)
        assert agent is not None
        return self.registry.limiter.take(agent, demand.model, demand)

    def serve(self, agent: Agent, demand: Demand | str = MODEL, *, seconds: float = 1.0, **figures: float) -> None:
        """Have an agent serve a request, alone and streamed; its first byte comes halfway."""
        demand = Demand(demand) if isinstance(demand, str) else demand
        lease = self.registry.limiter.take(agent, demand.model, demand)
        self.clock.now += seconds / 2
        lease.began()
        self.clock.now += seconds / 2
        self.registry.liveness.reached(agent)
        self.registry.limiter.answered(lease, AnswerObservation(**figures))  # type: ignore[arg-type]
        lease.release()

    def wait(self, name: str, demand: Demand | str = MODEL) -> None:
        """Join the line, as a client of that name."""
        demand = Demand(demand) if isinstance(demand, str) else demand
        self.scheduler.join(QueueKey(demand.model), name, lambda lease: self.granted.update({name: lease}), demand)

    def pass_time(self, seconds: float) -> None:
        """With probes that are answered, and a look every half second."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now += 0.5
            for agent in self.agents:
                if agent.online:
                    self.registry.liveness.reached(agent)
            self.registry.expire()
            self.scheduler.look()
