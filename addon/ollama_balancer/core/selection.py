"""The choice of an agent for a request, by the current mode's policy."""

from collections.abc import Collection

from .agent import Agent
from .demand import Demand
from .fleet import Fleet
from .health import Phase
from .policies import POLICIES, Policy
from .policies.adaptive import Adaptive, Choice
from .pools import UNKNOWN
from .scoring.agent_estimate import LONGEST_LOAD, Situation


class Selection:
    """`mode` is a policy's name. KeyError: there is none of that name."""

    def __init__(self, fleet: Fleet, mode: str) -> None:
        self._fleet = fleet
        self._pools = fleet.pools
        self.policy: Policy = POLICIES[mode]

    def select(self, model: str | None = None, exclude: Collection[Agent] = ()) -> Agent | None:
        """The agent for the next request, by the current mode.

        `model` is a canonical model name, or None if any agent will do; `exclude` the few agents that have been tried.
        Candidates are online, not draining, not ejected, have the model and a slot for it; those whose models are not
        known yet come after them. None: no candidate. The choice takes no lease.
        """
        return self.select_by(self.policy, model, exclude)

    def select_by(self, policy: Policy, model: str | None, exclude: Collection[Agent] = ()) -> Agent | None:
        """The same by another policy."""
        fleet = self._fleet
        now = fleet.clock()
        if now >= fleet.next_expiry:
            fleet.expire()
        pool = self._pools.by_policy[policy.name].get(model)
        if pool is None:
            pool = self._pools.get(policy, model)
        if pool is not None:
            pool.used = now
            agent = policy.select(pool, exclude)
            if agent is not None:
                return agent
        return None if model is None else self._select_undiscovered(policy, model, exclude)

    def choose(self, demand: Demand, exclude: Collection[Agent] = (), *, ahead: int = 0, waited: float = 0.0) -> Choice:
        """The agent for a request that has waited so many seconds with so many ahead of it; None: it is to wait.

        As `select`, and in the mode that goes by it, with what else is known of the request.
        """
        policy, fleet = self.policy, self._fleet
        if isinstance(policy, Adaptive):
            now = fleet.clock()
            if now >= fleet.next_expiry:
                fleet.expire()
            pool = self._pools.get(policy, demand.model)
            if pool is not None and pool.candidates.members:
                pool.used = now
                at = Situation(fleet.learner, now, fleet.waiting, fleet.chance)
                choice = policy.choose(pool, exclude, demand, at, ahead=ahead, waited=waited)
                if choice is not None:
                    if choice.agent is None:
                        agent = self._select_undiscovered(policy, demand.model, exclude)
                        return choice if agent is None else Choice(agent)
                    return choice
        return Choice(self.select_by(policy, demand.model, exclude))

    def has_free_slot(self, agent: Agent, model: str) -> bool:
        """Whether the agent may get a request of the model now."""
        return agent.eligible and model not in agent.full

    def all_busy(self, model: str) -> bool:
        """Whether there are candidates for the model, and none of them has a slot free: `choose` would find nobody."""
        pool = self._pools.get(self.policy, model)
        return pool is not None and pool.all_full and not self._fleet.undiscovered

    def least_bad(self, model: str, exclude: Collection[Agent] = ()) -> Agent | None:
        """Where all that could serve the model are ejected: the one to be tried next, if none is tried at this moment.

        None as well where one is there that is not ejected, and is only busy: but not with a load that seems stuck.
        """
        best: Agent | None = None
        for agent in self._fleet.candidates(model):
            if not agent.available or agent in exclude:
                continue
            if agent.health.phase is not Phase.EJECTED:
                if self._is_stuck(agent, model):
                    continue
                return None
            if (
                agent.half_open_lease is None
                and model not in agent.full
                and (best is None or agent.health.until < best.health.until)
            ):
                best = agent
        return best

    def could_serve(self, model: str, exclude: Collection[Agent] = ()) -> bool:
        """Whether there is an agent that may serve the model when its turn comes: it may be busy or ejected now."""
        return any(agent.available and agent not in exclude for agent in self._fleet.candidates(model))

    def serves_soon(self, model: str, exclude: Collection[Agent] = ()) -> bool:
        """As `could_serve`, without the agents that are full and whose load of the model seems stuck."""
        return any(
            agent.available and agent not in exclude and not self._is_stuck(agent, model)
            for agent in self._fleet.candidates(model)
        )

    def _is_stuck(self, agent: Agent, model: str) -> bool:
        """Whether the agent is full, and loads the model for so long that it is not known when that will be over."""
        since = agent.loading.get(model)
        if since is None or model not in agent.full:
            return False
        usual = self._fleet.learner.estimates.load.value(agent.id, model)
        return self._fleet.clock() - since >= LONGEST_LOAD * usual

    def _select_undiscovered(self, policy: Policy, model: str, exclude: Collection[Agent]) -> Agent | None:
        """Of those whose models are not known yet."""
        fleet = self._fleet
        if not fleet.undiscovered:
            return None
        exclude = {*exclude, *(agent for agent in fleet.undiscovered if model in agent.full)}
        pool = self._pools.get(policy, UNKNOWN)
        return policy.select(pool, exclude) if pool else None
