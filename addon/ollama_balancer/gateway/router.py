"""Where a request goes, or what the balancer answers itself. Decides; does nothing to the flow."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from ..core.agent import Agent, Status
from ..core.agent_records import Outcome
from ..core.leases import Lease
from ..core.policies.adaptive import in_words
from ..core.queue import QueueFullError, QueueKey, RequestQueue
from ..core.registry import AgentRegistry
from ..core.scheduler import Scheduler
from ..ollama.errors import Blame, error_body, model_not_found
from ..ollama.json_scanning import is_json
from ..ollama.management import NOBODY_AWAY, Away, Reply
from ..ollama.names import canonical_name, is_cloud_model, local_name
from ..ollama.prompts import read_prompt
from ..ollama.requests import needed_model
from ..ollama.routes import Dialect, Kind, Route, find_redirect, find_route
from ..ollama.suggestions import did_you_mean
from ..text import one_line
from .bodies import RefusedBodyError, model_in_query
from .context import CORRECTIONS, Candidate, Exchange, FailureKind
from .merging import ROOT, MergedFleet
from .reading import Reading, read_body
from .retry_budget import RetryBudget
from .translation import demand_of

RETRY_AFTER = "5"
"""Seconds: by then every agent that was away has been probed again."""

MAX_CORRECTIONS = 16
"""How many agents that turn out not to have a model, or a route, are passed over for one request."""

MAX_LOADS = 2
"""How many agents try to load a model for one request: each pushes out what it has loaded."""

UNSENT = frozenset({Blame.LACKS_MODEL, Blame.LACKS_ROUTE, Blame.HOST_REFUSES, FailureKind.CONNECT})
"""Failures after which another agent is no retry: the first has done no work."""

JSON_TYPE = "application/json; charset=utf-8"
TEXT_TYPE = "text/plain; charset=utf-8"
HTML_TYPE = "text/html; charset=utf-8"

MOST_LISTED = 64
"""Agents of a fleet whose candidates are listed for people; sorting more of them takes too long."""

MOST_SHOWN = 8

MAX_MODEL_NAME = 512
"""No agent reports a longer name, so none has it."""

NO_AGENTS = (
    "no Ollama host is known to the balancer: start ollama-agent-reporter on each host, "
    "or start the balancer with --set balancer_agents=http://HOST:11434"
)


@dataclass(frozen=True)
class Forward:
    """Send the request to this agent. It has been taken: the exchange holds the lease."""

    agent: Agent


@dataclass(frozen=True)
class Everywhere:
    """Send the request to all these agents, and make one answer of theirs. None has been taken yet."""

    agents: tuple[Agent, ...]
    by_all: bool = False
    """Whether one that does not have it makes it a 404, though others do."""
    away: Away = NOBODY_AWAY
    """Who has what it is about and cannot be asked."""


@dataclass(frozen=True)
class Wait:
    """All agents that could serve the request are busy: it is to wait for its turn there."""

    place: QueueKey


@dataclass(frozen=True)
class Answer:
    """The balancer's own answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = field(default=JSON_TYPE, kw_only=True)
    problem: str | None = field(default=None, kw_only=True)
    """What is wrong, for the log and the flow's comment; None: nothing."""


class Dispatcher:
    """`retries` is how many other agents are tried when one fails before its first byte."""

    def __init__(self, registry: AgentRegistry, retries: int = 2) -> None:
        self.registry = registry
        self.retries = retries
        self.line = RequestQueue(registry.clock)
        self.scheduler = Scheduler(registry, self.line)
        self.merged = MergedFleet(registry)
        self.retry_budget = RetryBudget(registry.clock)
        self.explains: Callable[[], bool] = lambda: True
        """Whether somebody may want to see what else could have been chosen."""

    def begin(
        self,
        exchange: Exchange,
        method: str,
        target: str,
        body: bytes | None,
        content_type: str = "",
        *,
        encoding: str = "",
        websocket: bool = False,
        reading: Reading | RefusedBodyError | None = None,
    ) -> Forward | Everywhere | Wait | Answer:
        """The first decision on a request. `target` is its path and query; `body` is None where it is still to come.

        `encoding` is the body's first Content-Encoding. `websocket`: it asks for a WebSocket. `reading` is what the
        body says, where it has been read already.
        """
        registry = self.registry
        path = target.partition("?")[0]
        route = exchange.route = find_route(path)
        if route is None:
            redirect = find_redirect(method, target)
            if redirect is not None:
                return _redirected(method, redirect.status, redirect.location)
            if method == "OPTIONS" and path == "*":
                return Answer(200, b"", content_type="")
            return self.error(
                exchange.dialect, 404, f"{path[:200]}: Ollama has no such path, and the balancer forwards nothing else"
            )
        if method not in route.methods:
            if websocket:
                # Codex tries one first and sends its request at once when it is told so.
                answer = self.error(exchange.dialect, 426, f"there is no WebSocket at {path[:200]}: send a POST")
                return replace(answer, headers={"Upgrade": "HTTP/1.1", "Connection": "Upgrade"})
            answer = self.error(exchange.dialect, 405, f"{method[:20]} is not allowed for {path[:200]}")
            return replace(answer, headers={"Allow": ", ".join(route.methods)})
        exchange.mode = registry.mode
        read = reading or read_body(route, path, body, content_type, encoding, self.name_of, watched=self.explains())
        if isinstance(read, RefusedBodyError):
            return self.error(exchange.dialect, read.status, read.message)
        content, asked, demand, exchange.excerpt = read
        model = asked.model
        if route.is_form and "?" in target:
            model = model_in_query(target, model)
        if model is not None and len(model) > MAX_MODEL_NAME:
            return self.error(exchange.dialect, 404, model_not_found(model[:MAX_MODEL_NAME] + "…", route.path))
        exchange.model = model
        exchange.model_name = None if model is None else self.name_of(model)
        exchange.unloads = asked.unloads_after
        if route.runs and exchange.model_name is not None and not asked.unloads:
            exchange.slot_model = exchange.model_name
            exchange.streams = route.streams if asked.stream is None else asked.stream
            exchange.body_bytes = len(content or b"")
            if demand is None or demand.model != exchange.slot_model:
                prompt = read_prompt(route, exchange.slot_model, content or b"", asked.members)
                demand = demand_of(exchange.slot_model, route.path, prompt)
            exchange.demand = demand
            if not exchange.streams:
                exchange.demand = exchange.demand._replace(streams=False)
        if exchange.pin is not None:
            return self._pinned(exchange, route, exchange.pin)
        match route.kind:
            case Kind.MERGED:
                return self._merged(exchange, route)
            case Kind.NAMED:
                return self.error(
                    exchange.dialect,
                    400,
                    f"{path[:200]} concerns one host and the balancer has many: name it in the header X-Balancer-Agent",
                )
            case Kind.EVERY:
                away = self._away(route, needed_model(route, body, asked))
                return self._everywhere(exchange, tuple(a for a in registry if a.available), route, away)
        if asked.unloads and exchange.model_name is not None:
            holders = tuple(agent for agent in registry.inventory.holders(exchange.model_name) if agent.available)
            if len(holders) > 1:
                return self._everywhere(exchange, holders, route)
        # A form is no JSON to begin with.
        return self._choose(exchange) or self._nobody(exchange, None if "form-data" in content_type else content)

    def name_of(self, model: str) -> str:
        """The canonical name of the model that a request names."""
        name = canonical_name(model)
        if name.endswith(":local") and not self.registry.inventory.has_model(name):  # older servers have such tags
            return local_name(model) or name
        return name

    def again(self, exchange: Exchange) -> Forward | Wait | Answer:
        """The decision after the last agent failed before its first byte; its failure is in the exchange."""
        if exchange.pin is None and self._may_go_elsewhere(exchange):
            decision = self._choose(exchange)
            if decision is not None:
                return decision
        return self.gave_up(exchange)

    def _may_go_elsewhere(self, exchange: Exchange) -> bool:
        """Whether the request may be sent to one more agent, and there is one."""
        corrections = exchange.count(*CORRECTIONS)
        if exchange.attempts - corrections > self.retries or corrections > MAX_CORRECTIONS:
            return False
        tried = exchange.tried
        if exchange.count(Blame.CANNOT_LOAD):
            avoided = self.registry.avoidance.for_demand(exchange.demand) if exchange.demand is not None else ()
            if exchange.count(Blame.CANNOT_LOAD) >= MAX_LOADS or not self._is_left(exchange, {*tried, *avoided}):
                return False
        if not self._is_left(exchange, tried):
            return False
        if exchange.failures[-1].kind in UNSENT or not tried[-1].eligible:
            return True  # nothing was done; or it fails no others now, and who had been sent there must not suffer
        exchange.retries_spent = not self.retry_budget.spend()
        return not exchange.retries_spent

    def _is_left(self, exchange: Exchange, tried: Collection[Agent]) -> bool:
        registry = self.registry
        if exchange.model:
            return registry.selection.could_serve(canonical_name(exchange.model), tried)
        return any(agent.available and agent not in tried for agent in registry)

    def join(self, exchange: Exchange, place: QueueKey, notify: Callable[[Lease | None], None]) -> Answer | None:
        """Have the request wait for its turn; the answer is for one that finds the line full."""
        exchange.waiting_since = self.registry.clock()
        exchange.leave_line = self.line.leave
        try:
            exchange.waiter = self.scheduler.join(place, exchange.client, notify, exchange.demand, exchange.share)
        except QueueFullError:
            exchange.leave()
            return self._too_busy(
                exchange, f"{len(self.line)} requests wait already, which is the most (balancer_queue_size)"
            )
        return None

    def granted(self, exchange: Exchange, lease: Lease) -> Forward:
        """The request's turn has come, with an agent."""
        exchange.waiter = None
        exchange.leave()
        exchange.options = lease.options
        exchange.why = f"{self._why(exchange, lease.agent)}, after {exchange.waited:.1f} s in line"
        self._take(exchange, lease)
        return Forward(lease.agent)

    def deserted(self, exchange: Exchange) -> Forward | Everywhere | Wait | Answer:
        """All agents for which the request has waited are gone: what now?"""
        exchange.waiter = None
        exchange.leave()
        if exchange.failures:
            return self.gave_up(exchange)
        if exchange.pin is not None:
            assert exchange.route
            return self._pinned(exchange, exchange.route, exchange.pin)
        return self._choose(exchange) or self._nobody(exchange, None)

    def waited_too_long(self, exchange: Exchange, seconds: float) -> Answer:
        exchange.leave()
        return self._too_busy(exchange, f"none was free within {seconds:g} s (balancer_queue_timeout)")

    def _too_busy(self, exchange: Exchange, why: str) -> Answer:
        who = f"agent {exchange.pin!r} is" if exchange.pin else f"all agents with model '{exchange.model}' are"
        answer = self.error(exchange.dialect, 503, f"{who} busy, and {why}")
        return replace(answer, headers={"Retry-After": str(self.line.retry_after())})

    def gave_up(self, exchange: Exchange) -> Answer:
        """The answer when nobody is left to try."""
        tried = "; ".join(f"{failure.agent}: {failure.reason}" for failure in exchange.failures)
        if exchange.retries_spent:
            tried += "; not sent elsewhere: too many requests of late have failed, and the fleet's retries are spent"
        return self.error(exchange.dialect, 502, f"no agent could answer ({tried})")

    def own_trouble(self, exchange: Exchange, reason: str) -> Answer:
        """The answer where the balancer could not even try; the agent that was to have it is not to blame."""
        if exchange.lease is not None:
            exchange.lease.release(Outcome.CANCELLED)
            exchange.lease = None
        return self.error(exchange.dialect, 503, f"the balancer can open no connection: {one_line(reason)}")

    def error(self, dialect: Dialect, status: int, message: str) -> Answer:
        headers = {"Retry-After": RETRY_AFTER} if status == 503 else {}
        return Answer(status, error_body(dialect, status, message), headers, problem=message)

    def _choose(self, exchange: Exchange) -> Forward | Wait | None:
        registry, tried = self.registry, exchange.tried
        demand = exchange.demand
        if demand is None:
            return self._choose_without_slot(exchange)
        choice = self.scheduler.find(demand, tried)
        exchange.options = choice.options
        if choice.agent is None:
            place = QueueKey(demand.model, tried=frozenset(tried))
            return Wait(place) if registry.selection.could_serve(demand.model, tried) else None
        exchange.why = self._why(exchange, choice.agent)
        if not choice.options and self.explains():
            exchange.candidates = self._candidates(choice.agent, demand.model)
        self._take(exchange, registry.limiter.take(choice.agent, demand.model, demand, choice.options))
        return Forward(choice.agent)

    def _take(self, exchange: Exchange, lease: Lease) -> None:
        if not exchange.tried:
            self.retry_budget.count()
        exchange.take(lease)

    def _candidates(self, chosen: Agent, model: str) -> tuple[Candidate, ...]:
        """What the mode saw, for people; of a large fleet only the agent that it chose."""
        registry, rank = self.registry, self.registry.selection.policy.rank
        agents = [chosen]
        if len(registry) <= MOST_LISTED:
            others = [a for a in registry if a.available and a.may_have(model) and a is not chosen]
            others.sort(key=lambda agent: math.inf if (at := rank(agent)) is None else at)
            agents += others[: MOST_SHOWN - 1]
        return tuple(Candidate(agent.name, agent.score, agent.in_flight) for agent in agents)

    def _choose_without_slot(self, exchange: Exchange) -> Forward | None:
        """For a request that no model is run for: an agent that is busy with others will do as well."""
        registry = self.registry
        model = exchange.model_name
        tried: Collection[Agent] = exchange.tried
        avoided = registry.avoidance.for_route(exchange.route.path) if exchange.route is not None else ()
        if avoided and self._is_left(exchange, others := {*tried, *avoided}):
            tried = others
        agent = registry.selection.select(model, tried)
        if agent is not None:
            exchange.why = registry.selection.policy.why(agent)
        else:
            able = [a for a in registry if a.available and a.may_have(model) and a not in tried]
            if not able:
                return None
            agent = min(able, key=lambda agent: agent.in_flight)
            exchange.why = "needs no slot"
        self._take(exchange, registry.limiter.take(agent))
        return Forward(agent)

    def _why(self, exchange: Exchange, agent: Agent) -> str:
        if exchange.pin is not None:
            return "named by the request"
        if agent.status is Status.EJECTED:
            return "to see whether it serves again"
        if exchange.options:
            return in_words(exchange.options)
        return self.registry.selection.policy.why(agent)

    def _nobody(self, exchange: Exchange, body: bytes | None) -> Forward | Answer:
        """No agent that has the model can be had: why, or an agent that says what else is wrong with the request."""
        registry = self.registry
        model = exchange.model
        if len(registry) == 0 or model is None or exchange.model_name is None:
            return self._none_online(exchange.dialect)
        if registry.inventory.has_model(exchange.model_name):
            return self.error(exchange.dialect, 503, f"no agent that has model '{model}' is online: {self._states()}")
        if registry.inventory.may_have_unknown_models() and not registry.any_online:
            # Beside agents that are there, one that has never been heard of says nothing.
            return self.error(
                exchange.dialect, 503, f"no agent that may have model '{model}' is online: {self._states()}"
            )
        if is_cloud_model(model) or (body and not is_json(body)):
            exchange.model_name = exchange.slot_model = exchange.demand = None
            forward = self._choose_without_slot(exchange)
            exchange.model_name = self.name_of(model)
            if forward is not None:
                return forward
        path = exchange.route.path if exchange.route else ""
        message = model_not_found(model, path) + did_you_mean(model, registry.inventory.models())
        return self.error(exchange.dialect, 404, message)

    def _none_online(self, dialect: Dialect) -> Answer:
        problem = NO_AGENTS if len(self.registry) == 0 else f"no agent is online: {self._states()}"
        return self.error(dialect, 503, problem)

    def _states(self) -> str:
        return ", ".join(f"{n} {status}" for status, n in sorted(self.registry.counts().items()))

    def _everywhere(
        self, exchange: Exchange, agents: tuple[Agent, ...], route: Route, away: Away = NOBODY_AWAY
    ) -> Everywhere | Answer:
        if not agents:
            who = "; ".join(f"{reply.agent}: {reply.reason}" for reply in away.replies[:MOST_SHOWN])
            return self.error(exchange.dialect, 503, who) if who else self._none_online(exchange.dialect)
        exchange.why = "concerns every host" if len(agents) > 1 else "the only host"
        return Everywhere(agents, "HEAD" in route.methods, away)

    def _away(self, route: Route, model: str | None) -> Away:
        """The agents that have the model which is to be managed, and get no requests now."""
        if model is None:
            return NOBODY_AWAY
        must = route.path == "/api/delete"
        then = f"still has model '{model}': delete it again when it is back" if must else f"has model '{model}'"
        replies = []
        for agent in self.registry.inventory.holders(canonical_name(model)):
            if not agent.available:
                state = f"{agent.status} ({agent.reason})" if agent.reason else agent.status
                replies.append(Reply(agent.name, 503, problem=f"it is {state} and {then}"))
        return Away(tuple(replies), must)

    def _pinned(self, exchange: Exchange, route: Route, name: str) -> Forward | Everywhere | Wait | Answer:
        registry = self.registry
        agent = registry.get(name)
        if agent is None:
            return self.error(exchange.dialect, 404, f"no agent is called {name[:80]!r}: GET /api/agents lists them")
        agent = agent.alias_of or agent
        if not agent.available:
            why = f": {agent.reason}" if agent.reason else ""
            return self.error(exchange.dialect, 503, f"agent {agent.name!r} is {agent.status}{why}")
        exchange.why = "named by the request"
        if route.kind is Kind.EVERY:
            return Everywhere((agent,))
        model = exchange.slot_model
        if model is not None and not registry.selection.has_free_slot(agent, model):
            if agent.status is Status.EJECTED:
                return self.error(exchange.dialect, 503, f"agent {agent.name!r} is ejected: {agent.reason}")
            return Wait(QueueKey(model, agent))
        self._take(exchange, registry.limiter.take(agent, model, exchange.demand))
        return Forward(agent)

    def _merged(self, exchange: Exchange, route: Route) -> Forward | Answer:
        merged = self.merged
        if not self.registry.any_online:
            return self._none_online(route.dialect)
        match route.path:
            case "/":
                return Answer(200, ROOT, content_type=TEXT_TYPE)
            case "/api/version":
                version = merged.version()
                if version is None:
                    return self._choose_without_slot(exchange) or self._none_online(route.dialect)
                return Answer(200, version)
            case "/api/tags":
                return Answer(200, merged.tags())
            case "/api/ps":
                return Answer(200, merged.running())
            case _:
                return Answer(200, merged.openai_models(), content_type="application/json")


def _redirected(method: str, status: int, location: str) -> Answer:
    """The server's redirect; only GET has a body, and HEAD its head."""
    words = {301: "Moved Permanently", 307: "Temporary Redirect"}[status]
    body = f'<a href="{html.escape(location)}">{words}</a>.\n\n'.encode()
    if method in ("GET", "HEAD"):
        return Answer(status, body, {"Location": location}, content_type=HTML_TYPE)
    return Answer(status, b"", {"Location": location}, content_type="")
