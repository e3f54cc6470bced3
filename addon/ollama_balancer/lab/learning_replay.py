"""Replays recorded requests to a registry at their times, so that it learns what it had learned from them."""

from dataclasses import dataclass, field

from agent_reporter.wire import ModelEntry

from ..core.address import Address
from ..core.agent import Agent
from ..core.agent_records import Outcome
from ..core.leases import Lease
from ..core.registry import AgentRegistry
from ..gateway.translation import observation_of
from ..ollama.answers import Answer
from ..ollama.names import canonical_name
from .engine import Engine
from .recording import Recorded


@dataclass
class LearningReplay:
    """A registry of these agents, initially without knowledge."""

    names: list[str]
    room: dict[str, int]
    """How many models each agent has in memory at once."""
    engine: Engine = field(default_factory=Engine)
    agents: dict[str, Agent] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registry = AgentRegistry(self.engine, chance=lambda: 0.5, canonical_name=canonical_name)
        for name in self.names:
            self.agents[name], _ = self.registry.register(name, Address(name, 0))

    def run(self, requests: list[Recorded]) -> None:
        start = requests[0].at
        for request in requests:
            agent = self.agents.get(request.agent or "")
            if agent is not None:
                self._schedule(request, agent, start)
        self.engine.run(max(request.ended for request in requests) - start)

    def _schedule(self, request: Recorded, agent: Agent, start: float) -> None:
        leases: list[Lease] = []

        def send() -> None:
            self._make_room(agent, request.model)
            leases.append(self.registry.limiter.take(agent, request.model, request.demand))

        def end() -> None:
            [lease] = leases
            if request.served:
                self._learn(request, lease)
            lease.release(Outcome.SUCCEEDED if request.served else Outcome.CANCELLED, request.ended - request.sent)

        self.engine.after(request.sent - start, send)
        if request.began is not None:
            self.engine.after(request.began - start, lambda: leases[0].began())
        self.engine.after(request.ended - start, end)

    def _make_room(self, agent: Agent, model: str) -> None:
        """A load with full memory evicts another model: the least recently used one."""
        room, loaded = self.room[agent.name], agent.loaded_models
        if model not in loaded and len(loaded) >= room:
            kept = sorted(loaded, key=lambda name: -loaded[name].proven_at)[: room - 1]
            self.registry.inventory.update_loaded(agent, [ModelEntry(name=name) for name in kept])

    def _learn(self, request: Recorded, lease: Lease) -> None:
        timings = request.timings
        if timings.eval_duration is None and timings.total_duration is None:
            if not request.output and request.demand.output_limit != 0:
                return  # nothing could be read
            if request.attempts != 1:
                return  # the times are also those of the agents before
        if timings.load_duration is None and request.warm:
            # A short silence is no load, though the model was not seen there before.
            timings = timings._replace(load_duration=0.0)
        answer = Answer()
        answer.timings, answer.pieces = timings, request.pieces
        # An embedding comes whole: until then its text is read.
        embeds = request.demand.output_limit == 0
        self.registry.limiter.answered(
            lease, observation_of(answer, request.demand, streamed=request.streamed or embeds)
        )
