"""The candidates for one model under one policy, indexed so that the policy's choice costs constant time."""

from collections.abc import Callable, Collection

from .agent import Agent
from .scoreboard import Scoreboard
from .scoring.candidates import Candidates


class Pool:
    """Eligible agents that have a model, with the order the policy ranks them in.

    `board` holds those that the policy ranks and that have a slot free, `cool` those of them whose CPU is at or under
    80 %.
    """

    __slots__ = (
        "_full",
        "_ring",
        "board",
        "candidates",
        "cool",
        "index",
        "model",
        "policy",
        "used",
    )

    def __init__(self, policy: str, rank: Callable[[Agent], int | None], model: str | None = None) -> None:
        self.policy = policy
        """Its name."""
        self.model = model
        self.board: Scoreboard[Agent] = Scoreboard(rank)
        self.cool: set[Agent] = set()
        self.index = 0
        self.used = 0.0
        """When it was last asked for, on the registry's clock."""
        self.candidates = Candidates(model)
        self._full: set[Agent] = set()
        """Members that run as many requests of the model as they can."""
        self._ring: list[Agent] | None = None

    def __len__(self) -> int:
        return len(self.candidates.members)

    def __repr__(self) -> str:
        return f"Pool({self.policy}, {len(self.candidates.members)} candidates, {self.board!r}, {len(self.cool)} cool)"

    def add(self, agent: Agent) -> None:
        if agent not in self.candidates.members:
            self.candidates.add(agent)
            agent.pools.append(self)
            if self.model in agent.full:
                self._full.add(agent)
            else:
                agent.boards.append(self.board)
            self._ring = None
        self.changed(agent)

    def discard(self, agent: Agent) -> None:
        if agent in self.candidates.members:
            self.fill(agent)
            self.candidates.discard(agent)
            self._full.remove(agent)
            agent.pools.remove(self)
            self._ring = None

    def fill(self, agent: Agent) -> None:
        """It has no slot free, and is not chosen until it has."""
        if agent in self.candidates.members and agent not in self._full:
            self._full.add(agent)
            agent.boards.remove(self.board)
            self.board.remove(agent)
            self.cool.discard(agent)

    def free(self, agent: Agent) -> None:
        """It has a slot free again."""
        if agent in self._full:
            self._full.remove(agent)
            agent.boards.append(self.board)
            self.changed(agent)

    @property
    def all_full(self) -> bool:
        """Whether there are members, and each runs as many requests of the model as it can."""
        return 0 < len(self.candidates.members) == len(self._full)

    def clear(self) -> None:
        for agent in list(self.candidates.members):
            self.discard(agent)

    def changed(self, agent: Agent) -> None:
        """The agent's metrics are others, or no longer fresh."""
        if agent in self._full:
            return
        if self.board.update(agent) and not agent.hot:
            self.cool.add(agent)
        else:
            self.cool.discard(agent)

    def has_cool(self, exclude: Collection[Agent]) -> bool:
        """Whether one of those that may be chosen has a CPU at or under 80 %."""
        return len(self.cool) > len(exclude) or any(agent not in exclude for agent in self.cool)

    def next_in_turn(self, exclude: Collection[Agent]) -> Agent | None:
        """Round robin: `index % len(candidates)`, in the order of registration, without the full and the excluded."""
        full = self._full
        if len(full) == len(self.candidates.members):
            return None
        ring = self._ring
        if ring is None:
            ring = self._ring = sorted(self.candidates.members, key=lambda agent: agent.number)
        for _ in range(len(ring)):
            agent = ring[self.index % len(ring)]
            self.index += 1
            if agent not in exclude and agent not in full:
                return agent
        return None
