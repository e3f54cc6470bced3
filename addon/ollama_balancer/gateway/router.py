"""Decides where a request goes, or what the balancer answers itself. No I/O."""

import math
from collections.abc import Callable, Collection
from dataclasses import replace

from ..core.agent import Agent, Status
from ..core.agent_records import Outcome
from ..core.decision import in_words
from ..core.leases import Lease
from ..core.priority import Priority
from ..core.queue import QueueFullError, RequestQueue
from ..core.registry import AgentRegistry
from ..core.scheduler import Scheduler
from ..core.tickets import QueueKey
from ..ollama.errors import Blame, model_not_found
from ..ollama.json_scanning import is_json
from ..ollama.management import NONE_UNAVAILABLE, Reply, Unavailable
from ..ollama.names import canonical_name, is_cloud_model, local_name
from ..ollama.requests import needed_model
from ..ollama.routes import Dialect, Kind, Route
from ..ollama.suggestions import did_you_mean
from ..text import one_line
from .access import Access
from .admission import admit
from .attempts import CORRECTIONS, Candidate, FailureKind
from .body_reader import Reading, RefusedBodyError
from .context import RequestContext
from .decisions import TEXT_TYPE, Answer, Broadcast, Forward, Wait, error
from .merging import ROOT, MergedFleet
from .messages import ClientRequest
from .retry_budget import RetryBudget

MAX_CORRECTIONS = 16
"""Agents without the model or the route that are skipped for one request."""

MAX_LOADS = 2
"""Agents that try to load a model for one request: each load evicts another model."""

UNSENT = frozenset({Blame.LACKS_MODEL, Blame.LACKS_ROUTE, Blame.HOST_REFUSES, FailureKind.CONNECT})
"""Failures after which another attempt is not a retry, because the first agent has done no work."""

MAX_LISTED = 64
"""Size of a fleet up to which candidates are listed; sorting more takes too long."""

MAX_SHOWN = 8

NO_AGENTS = (
    "no Ollama host is known to the balancer: start ollama-agent-reporter on each host, "
    "or start the balancer with --set balancer_agents=http://HOST:11434"
)


class Router:
    """`retries` is the number of further agents to try if one fails before the first byte."""

    def __init__(self, registry: AgentRegistry, access: Access | None = None, retries: int = 2) -> None:
        self.registry = registry
        self.access = access or Access(registry.clock)
        self.retries = retries
        self.queue = RequestQueue(registry.clock)
        self.scheduler = Scheduler(registry, self.queue)
        self.merged = MergedFleet(registry)
        self.retry_budget = RetryBudget(registry.clock)
        self.is_observed: Callable[[], bool] = lambda: True
        """Whether anybody may look at the candidates."""

    def begin(
        self, context: RequestContext, request: ClientRequest, reading: Reading | RefusedBodyError | None = None
    ) -> Forward | Broadcast | Wait | Answer:
        """The first decision on a request. `reading` is its parsed body, if it was parsed in a thread."""
        registry = self.registry
        context.mode = registry.mode
        admitted = admit(context, request, reading, name_of=self.name_of, observed=self.is_observed())
        if isinstance(admitted, Answer):
            return admitted
        route, parsed, content = admitted
        refused = self.access.admit(context, parsed, content or request.body)
        if refused is not None:
            return refused
        if context.pin is not None:
            return self._pinned(context, route, context.pin)
        match route.kind:
            case Kind.MERGED:
                return self._merged(context, route)
            case Kind.NAMED:
                return error(
                    context.dialect,
                    400,
                    f"{request.path[:200]} applies to one host: name it in the header X-Balancer-Agent",
                )
            case Kind.EVERY:
                unavailable = self._unavailable_holders(route, needed_model(route, request.body, parsed))
                return self._broadcast(context, tuple(a for a in registry if a.available), route, unavailable)
        if parsed.unloads and context.model_name is not None:
            holders = tuple(agent for agent in registry.inventory.holders(context.model_name) if agent.available)
            if len(holders) > 1:
                return self._broadcast(context, holders, route)
        # A form is no JSON to begin with.
        is_form = "form-data" in request.content_type
        return self._choose(context) or self._no_agent(context, None if is_form else content)

    def name_of(self, model: str) -> str:
        """The canonical name of the model that a request names."""
        name = canonical_name(model)
        if name.endswith(":local") and not self.registry.inventory.has_model(name):  # older servers have such tags
            return local_name(model) or name
        return name

    def retry(self, context: RequestContext) -> Forward | Wait | Answer:
        """The decision after a failed attempt, which is recorded in the context."""
        if context.pin is None and self._may_retry(context):
            decision = self._choose(context)
            if decision is not None:
                return decision
        return self.attempts_failed(context)

    def _may_retry(self, context: RequestContext) -> bool:
        """Whether another agent may and can be tried."""
        corrections = context.count(*CORRECTIONS)
        if context.attempts - corrections > self.retries or corrections > MAX_CORRECTIONS:
            return False
        tried = context.tried
        if context.count(Blame.CANNOT_LOAD):
            avoided = self.registry.avoidance.for_demand(context.demand) if context.demand is not None else ()
            if context.count(Blame.CANNOT_LOAD) >= MAX_LOADS or not self._has_untried(context, {*tried, *avoided}):
                return False
        if not self._has_untried(context, tried):
            return False
        if context.failures[-1].kind in UNSENT or not tried[-1].eligible:
            return True  # nothing was done; or it fails no others now, and who had been sent there must not suffer
        context.retry_budget_spent = not self.retry_budget.spend()
        return not context.retry_budget_spent

    def _has_untried(self, context: RequestContext, tried: Collection[Agent]) -> bool:
        registry = self.registry
        if context.model:
            return registry.selection.could_serve(canonical_name(context.model), tried)
        return any(agent.available and agent not in tried for agent in registry)

    def join(
        self, context: RequestContext, queue_key: QueueKey, notify: Callable[[Lease | None], None]
    ) -> Answer | None:
        """Put the request in the queue; returns an answer if the queue is full."""
        context.waiting_since = self.registry.clock()
        context.on_leave_queue = self.queue.leave
        try:
            context.ticket = self.scheduler.join(
                queue_key, context.client, notify, context.demand, context.fairness_key, context.priority
            )
        except QueueFullError:
            context.leave_queue()
            return self._too_busy(
                context, f"{len(self.queue)} requests are already in the queue, which is full (balancer_queue_size)"
            )
        return None

    def dispatch(self, context: RequestContext, lease: Lease) -> Forward:
        """The queue has granted the request a slot."""
        context.ticket = None
        context.leave_queue()
        context.scored_candidates = lease.options
        as_class = "" if context.priority is Priority.NORMAL else f" as {context.priority.label}"
        context.why = f"{self._why(context, lease.agent)}, after {context.waited:.1f} s in the queue{as_class}"
        self._take(context, lease)
        return Forward(lease.agent)

    def left_queue(self, context: RequestContext) -> Forward | Broadcast | Wait | Answer:
        """The request has left the queue without a slot: it was shed, or all agents that it waited for are gone."""
        shed = context.ticket is not None and context.ticket.shed
        context.ticket = None
        context.leave_queue()
        if shed:
            return self._too_busy(
                context,
                f"the queue is full (balancer_queue_size), so that this {context.priority.label} request had to make "
                "room for one of a higher priority",
            )
        if context.failures:
            return self.attempts_failed(context)
        if context.pin is not None:
            assert context.route
            return self._pinned(context, context.route, context.pin)
        return self._choose(context) or self._no_agent(context, None)

    def queue_timed_out(self, context: RequestContext, seconds: float) -> Answer:
        context.leave_queue()
        return self._too_busy(context, f"none became free within {seconds:g} s (balancer_queue_timeout)")

    def _too_busy(self, context: RequestContext, why: str) -> Answer:
        who = f"agent {context.pin!r} is" if context.pin else f"all agents with model '{context.model}' are"
        answer = error(context.dialect, 503, f"{who} busy, and {why}")
        return replace(answer, headers={"Retry-After": str(self.queue.retry_after())})

    def attempts_failed(self, context: RequestContext) -> Answer:
        """The answer after the last attempt has failed."""
        tried = "; ".join(f"{failure.agent}: {failure.reason}" for failure in context.failures)
        if context.retry_budget_spent:
            tried += "; not retried: too many requests have failed recently, and the retry budget is used up"
        return error(context.dialect, 502, f"no agent could answer ({tried})")

    def local_failure(self, context: RequestContext, reason: str) -> Answer:
        """The answer if the balancer itself cannot open a connection; the agent is not to blame."""
        if context.lease is not None:
            context.lease.release(Outcome.CANCELLED)
            context.lease = None
        return error(context.dialect, 503, f"the balancer cannot open a connection: {one_line(reason)}")

    def _choose(self, context: RequestContext) -> Forward | Wait | None:
        registry, tried = self.registry, context.tried
        demand = context.demand
        if demand is None:
            return self._choose_without_slot(context)
        if len(self.queue):
            queue_key = QueueKey(demand.model, tried=frozenset(tried))
            if self.queue.is_behind(queue_key, context.priority):
                return Wait(queue_key)  # those of a higher class may soon want the agents that are free
        choice = self.scheduler.find(demand, tried)
        context.scored_candidates = choice.options
        if choice.agent is None:
            queue_key = QueueKey(demand.model, tried=frozenset(tried))
            return Wait(queue_key) if registry.selection.could_serve(demand.model, tried) else None
        context.why = self._why(context, choice.agent)
        if not choice.options and self.is_observed():
            context.candidates = self._candidates(choice.agent, demand.model)
        self._take(context, registry.limiter.take(choice.agent, demand.model, demand, choice.options))
        return Forward(choice.agent)

    def _take(self, context: RequestContext, lease: Lease) -> None:
        if not context.tried:
            self.retry_budget.count()
        context.take(lease)

    def _candidates(self, chosen: Agent, model: str) -> tuple[Candidate, ...]:
        """The candidates as the policy saw them; for a large fleet only the chosen agent."""
        registry, rank = self.registry, self.registry.selection.policy.rank
        agents = [chosen]
        if len(registry) <= MAX_LISTED:
            others = [a for a in registry if a.available and a.may_have(model) and a is not chosen]
            others.sort(key=lambda agent: math.inf if (at := rank(agent)) is None else at)
            agents += others[: MAX_SHOWN - 1]
        return tuple(Candidate(agent.name, agent.score, agent.in_flight) for agent in agents)

    def _choose_without_slot(self, context: RequestContext) -> Forward | None:
        """Choose an agent for a request that runs no model; a busy one will do."""
        registry = self.registry
        model = context.model_name
        tried: Collection[Agent] = context.tried
        avoided = registry.avoidance.for_route(context.route.path) if context.route is not None else ()
        if avoided and self._has_untried(context, others := {*tried, *avoided}):
            tried = others
        agent = registry.selection.select(model, tried)
        if agent is not None:
            context.why = registry.selection.policy.why(agent)
        else:
            able = [a for a in registry if a.available and a.may_have(model) and a not in tried]
            if not able:
                return None
            agent = min(able, key=lambda agent: agent.in_flight)
            context.why = "needs no slot"
        self._take(context, registry.limiter.take(agent))
        return Forward(agent)

    def _why(self, context: RequestContext, agent: Agent) -> str:
        if context.pin is not None:
            return "pinned by the request"
        if agent.status is Status.EJECTED:
            return "half-open probe"
        if context.scored_candidates:
            return in_words(context.scored_candidates)
        return self.registry.selection.policy.why(agent)

    def _no_agent(self, context: RequestContext, body: bytes | None) -> Forward | Answer:
        """No agent with the model is available: say why, or forward a malformed request so that a host can say what is
        wrong.
        """
        registry = self.registry
        model = context.model
        if len(registry) == 0 or model is None or context.model_name is None:
            return self._none_online(context.dialect)
        if registry.inventory.has_model(context.model_name):
            return error(context.dialect, 503, f"no agent that has model '{model}' is online: {self._states()}")
        if registry.inventory.may_have_unknown_models() and not registry.any_online:
            # Beside agents that are there, one that has never been heard of says nothing.
            return error(context.dialect, 503, f"no agent that may have model '{model}' is online: {self._states()}")
        if is_cloud_model(model) or (body and not is_json(body)):
            context.model_name = context.slot_model = context.demand = None
            forward = self._choose_without_slot(context)
            context.model_name = self.name_of(model)
            if forward is not None:
                return forward
        path = context.route.path if context.route else ""
        message = model_not_found(model, path) + did_you_mean(
            model, filter(self._may_use(context), registry.inventory.models())
        )
        return error(context.dialect, 404, message)

    def _may_use(self, context: RequestContext) -> Callable[[str], bool] | None:
        """Whether the caller may use a model, given by its canonical name; None: it may use all."""
        key = context.caller.key
        if key is None or not key.models or context.caller.authorized or not self.access.needs_key:
            return None
        return key.may_use

    def _none_online(self, dialect: Dialect) -> Answer:
        problem = NO_AGENTS if len(self.registry) == 0 else f"no agent is online: {self._states()}"
        return error(dialect, 503, problem)

    def _states(self) -> str:
        return ", ".join(f"{n} {status}" for status, n in sorted(self.registry.counts().items()))

    def _broadcast(
        self,
        context: RequestContext,
        agents: tuple[Agent, ...],
        route: Route,
        unavailable: Unavailable = NONE_UNAVAILABLE,
    ) -> Broadcast | Answer:
        if not agents:
            who = "; ".join(f"{reply.agent}: {reply.reason}" for reply in unavailable.replies[:MAX_SHOWN])
            return error(context.dialect, 503, who) if who else self._none_online(context.dialect)
        context.why = "sent to every host" if len(agents) > 1 else "the only host"
        return Broadcast(agents, "HEAD" in route.methods, unavailable)

    def _unavailable_holders(self, route: Route, model: str | None) -> Unavailable:
        """Agents that have the model to be managed but take no requests now."""
        if model is None:
            return NONE_UNAVAILABLE
        required = route.path == "/api/delete"
        then = f"still has model '{model}': delete it again when it is back" if required else f"has model '{model}'"
        replies = []
        for agent in self.registry.inventory.holders(canonical_name(model)):
            if not agent.available:
                state = f"{agent.status} ({agent.reason})" if agent.reason else agent.status
                replies.append(Reply(agent.name, 503, problem=f"it is {state} and {then}"))
        return Unavailable(tuple(replies), required)

    def _pinned(self, context: RequestContext, route: Route, name: str) -> Forward | Broadcast | Wait | Answer:
        registry = self.registry
        agent = registry.get(name)
        if agent is None:
            return error(context.dialect, 404, f"there is no agent named {name[:80]!r}: GET /api/agents lists them")
        agent = agent.alias_of or agent
        if not agent.available:
            why = f": {agent.reason}" if agent.reason else ""
            return error(context.dialect, 503, f"agent {agent.name!r} is {agent.status}{why}")
        context.why = "pinned by the request"
        if route.kind is Kind.EVERY:
            return Broadcast((agent,))
        model = context.slot_model
        if model is not None and not registry.selection.has_free_slot(agent, model):
            if agent.status is Status.EJECTED:
                return error(context.dialect, 503, f"agent {agent.name!r} is ejected: {agent.reason}")
            return Wait(QueueKey(model, agent))
        self._take(context, registry.limiter.take(agent, model, context.demand))
        return Forward(agent)

    def _merged(self, context: RequestContext, route: Route) -> Forward | Answer:
        merged, may_use = self.merged, self._may_use(context)
        if not self.registry.any_online:
            return self._none_online(route.dialect)
        match route.path:
            case "/":
                return Answer(200, ROOT, content_type=TEXT_TYPE)
            case "/api/version":
                version = merged.version()
                if version is None:
                    return self._choose_without_slot(context) or self._none_online(route.dialect)
                return Answer(200, version)
            case "/api/tags":
                return Answer(200, merged.tags(may_use))
            case "/api/ps":
                return Answer(200, merged.running(may_use))
            case _:
                return Answer(200, merged.openai_models(may_use), content_type="application/json")
