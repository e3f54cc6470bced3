"""What waits in the queue: a ticket for each request."""

from collections.abc import Callable
from dataclasses import dataclass

from .agent import Agent
from .demand import Demand
from .leases import Lease
from .priority import HANDICAPS, Priority

type FairnessKey = tuple[str, str]
"""The group whose turns a request uses, and the client within that group."""


@dataclass(frozen=True, slots=True)
class QueueKey:
    """What a request waits for: tickets with equal keys can be served by the same agents."""

    model: str
    """A canonical name."""
    agent: Agent | None = None
    """The agent that the request is pinned to."""
    tried: frozenset[Agent] = frozenset()
    """Agents that have already failed the request."""


class Ticket:
    """A request in the queue.

    `notify` is called once it leaves the queue with a lease, or with None when no agent is left that could serve it, or
    it was shed.
    """

    __slots__ = (
        "affinity",
        "client",
        "demand",
        "due",
        "fairness_key",
        "key",
        "notify",
        "overtaken",
        "priority",
        "shed",
        "since",
        "waiting",
    )

    def __init__(
        self,
        key: QueueKey,
        demand: Demand,
        client: str,
        fairness_key: FairnessKey,
        since: float,
        notify: Callable[[Lease | None], None],
        affinity: Agent | None,
        priority: Priority = Priority.NORMAL,
    ) -> None:
        self.key = key
        self.affinity = affinity
        """The agent that has a prefix of its prompt cached."""
        self.overtaken = 0
        """How many other tickets were served before it out of turn."""
        self.demand = demand
        self.client = client
        """The name that people see."""
        self.fairness_key = fairness_key
        self.since = since
        self.priority = priority
        self.due = since + HANDICAPS[priority]
        """When it counts as having arrived, compared with other classes."""
        self.notify = notify
        self.waiting = True
        self.shed = False
        """Whether it had to make room for one of a higher class."""

    def __repr__(self) -> str:
        return f"Ticket({self.key.model}, {self.client}, since {self.since:.3f})"
