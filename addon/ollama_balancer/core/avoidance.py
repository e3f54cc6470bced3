"""Agents that have shown that they cannot serve one kind of request: others are preferred for a while.

An agent that could not load a model with certain options would try again with each request for it, and push out what it
has loaded; an older version answers 404 on a route that others have. Neither says anything about what else it serves.
Where all that could serve are avoided, none is: the caller gets the server's own words. Pure: the clock is handed in.
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple

from .agent import Agent
from .demand import Demand

SECONDS = 300.0
"""Seconds for which an agent is avoided: its memory, files or version may have changed by then.

As long as the longest ejection."""

REFUSED_SECONDS = 30.0
"""Seconds for which an agent that refused the credentials is avoided."""

FAILING_SECONDS = 10.0
"""Seconds for which an agent that fails is avoided if the fleet cannot spare it, so that it is not ejected.

As long as a first ejection."""

MAX_KINDS = 1_000
"""Kinds of requests for which agents are avoided: clients choose the options."""

_ANY = None
"""All kinds of requests."""


class _Shown(NamedTuple):
    until: float
    version: str | None
    digest: object
    """The digest of the model. With another digest or version the entry no longer holds."""


class Avoidance:
    """`clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: dict[Hashable, dict[Agent, _Shown]] = {}
        """By model and runner options, or by route; the oldest first."""

    def __len__(self) -> int:
        return len(self._kinds)

    def cannot_load(self, agent: Agent, model: str, runner: str) -> None:
        """The agent could not load the model (a canonical name) with those options."""
        self._note((model, runner), agent, model)

    def lacks_route(self, agent: Agent, route: str) -> None:
        """The agent does not have the route, as `Route.path`."""
        self._note(route, agent, None)

    def refuses(self, agent: Agent, route: str) -> None:
        """The agent refused a caller, whose credentials may be at fault."""
        self._note(route, agent, None, REFUSED_SECONDS)

    def fails(self, agent: Agent) -> None:
        """The agent fails and is not ejected: as it fails fast, it would attract all requests."""
        self._note(_ANY, agent, None, FAILING_SECONDS)

    def served(self, agent: Agent, model: str, runner: str) -> None:
        """The agent has served the model with those options."""
        if self._kinds:
            self._drop((model, runner), agent)
            self._drop(_ANY, agent)

    def forget(self, agent: Agent) -> None:
        """The agent has left or come back: nothing holds any more."""
        for kind in list(self._kinds):
            self._drop(kind, agent)

    def for_demand(self, demand: Demand) -> set[Agent]:
        """The agents to avoid for the demand, as long as there are others."""
        if not self._kinds:
            return set()
        return (
            self._of((demand.model, demand.runner), demand.model) | self._of(demand.route, None) | self._of(_ANY, None)
        )

    def for_route(self, route: str) -> set[Agent]:
        """The agents to avoid on the route, as long as there are others."""
        return self._of(route, None) | self._of(_ANY, None) if self._kinds else set()

    def _note(self, kind: Hashable, agent: Agent, model: str | None, seconds: float = SECONDS) -> None:
        if agent.removed:
            return
        now, agents = self._clock(), self._kinds.get(kind)
        if agents is None:
            while self._kinds:
                oldest = next(iter(self._kinds))
                if len(self._kinds) < MAX_KINDS and any(now < shown.until for shown in self._kinds[oldest].values()):
                    break
                del self._kinds[oldest]
            agents = self._kinds[kind] = {}
        agents[agent] = _Shown(now + seconds, agent.version, _digest(agent, model))

    def _of(self, kind: Hashable, model: str | None) -> set[Agent]:
        agents = self._kinds.get(kind)
        if agents is None:
            return set()
        now = self._clock()
        for agent, shown in list(agents.items()):
            if now >= shown.until or (shown.version, shown.digest) != (agent.version, _digest(agent, model)):
                self._drop(kind, agent)
        return set(agents)

    def _drop(self, kind: Hashable, agent: Agent) -> None:
        agents = self._kinds.get(kind)
        if agents is not None:
            agents.pop(agent, None)
            if not agents:
                del self._kinds[kind]


def _digest(agent: Agent, model: str | None) -> object:
    entry = agent.models.get(model) if model is not None and agent.models is not None else None
    return (entry.model_extra or {}).get("digest") if entry is not None else None
