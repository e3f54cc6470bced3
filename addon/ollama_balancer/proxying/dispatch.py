"""Where a request goes, or what the balancer answers itself. Decides; does nothing to the flow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..fleet.agent import Agent
from ..fleet.registry import AgentRegistry
from ..ollama import merging
from ..ollama.errors import error_body, model_not_found
from ..ollama.names import canonical_name
from ..ollama.requests import requested_model
from ..ollama.routes import Dialect, Kind, Route, find_route
from .exchange import Exchange

RETRY_AFTER = "5"
"""Seconds: by then every agent that was away has been probed again."""

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
class Answer:
    """The balancer's own answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None
    """What is wrong, for the log and the flow's comment; None: nothing."""


class Dispatcher:
    """`retries` is how many other agents are tried when one fails before its first byte."""

    def __init__(self, registry: AgentRegistry, retries: int = 2) -> None:
        self.registry = registry
        self.retries = retries

    def begin(self, exchange: Exchange, method: str, path: str, body: bytes | None) -> Forward | Answer:
        """The first decision on a request. `path` is without its query."""
        registry = self.registry
        route = exchange.route = find_route(path)
        if route is None:
            return self.error(
                exchange.dialect, 404, f"{path[:200]}: Ollama has no such path, and the balancer forwards nothing else"
            )
        if method not in route.methods:
            answer = self.error(exchange.dialect, 405, f"{method[:20]} is not allowed for {path[:200]}")
            return Answer(405, answer.body, {"Allow": ", ".join(route.methods)}, answer.problem)
        exchange.mode = registry.mode
        model = requested_model(route, path, body)
        if model is not None and len(model) > MAX_MODEL_NAME:
            return self.error(exchange.dialect, 404, model_not_found(path, model[:MAX_MODEL_NAME] + "…"))
        exchange.model = model
        if exchange.pin is not None:
            return self._pinned(exchange, exchange.pin)
        if route.kind is Kind.MERGED:
            return self._merged(route)
        if route.kind in (Kind.NAMED, Kind.EVERY):
            status = 400 if route.kind is Kind.NAMED else 501
            return self.error(
                exchange.dialect,
                status,
                f"{path[:200]} concerns one host and the balancer has many: name it in the header X-Balancer-Agent",
            )
        return self._choose(exchange) or self._nobody(exchange)

    def again(self, exchange: Exchange) -> Forward | Answer:
        """The decision after the last agent failed before its first byte; its failure is in the exchange."""
        if exchange.pin is None and exchange.attempts <= self.retries:
            forward = self._choose(exchange)
            if forward is not None:
                return forward
        return self.gave_up(exchange)

    def gave_up(self, exchange: Exchange) -> Answer:
        """The answer when nobody is left to try."""
        tried = "; ".join(f"{failure.agent}: {failure.reason}" for failure in exchange.failures)
        return self.error(exchange.dialect, 502, f"no agent could answer ({tried})")

    def error(self, dialect: Dialect, status: int, message: str) -> Answer:
        headers = {"Retry-After": RETRY_AFTER} if status == 503 else {}
        return Answer(status, error_body(dialect, status, message), headers, message)

    def _choose(self, exchange: Exchange) -> Forward | None:
        registry = self.registry
        model = canonical_name(exchange.model) if exchange.model else None
        agent = registry.select(model, exchange.tried)
        if agent is None:
            return None
        exchange.why = registry.policy.why(agent)
        exchange.take(registry.take(agent))
        return Forward(agent)

    def _nobody(self, exchange: Exchange) -> Answer:
        registry = self.registry
        if len(registry) == 0:
            return self.error(exchange.dialect, 503, NO_AGENTS)
        model = exchange.model
        if model is None:
            return self.error(exchange.dialect, 503, f"no agent is online: {self._states()}")
        if registry.has_model(canonical_name(model)):
            return self.error(exchange.dialect, 503, f"no agent that has model '{model}' is online: {self._states()}")
        if registry.may_have_unknown_models():
            return self.error(
                exchange.dialect, 503, f"no agent that may have model '{model}' is online: {self._states()}"
            )
        path = exchange.route.path if exchange.route else ""
        return self.error(exchange.dialect, 404, model_not_found(model, path))

    def _states(self) -> str:
        return ", ".join(f"{n} {status}" for status, n in sorted(self.registry.counts().items()))

    def _pinned(self, exchange: Exchange, name: str) -> Forward | Answer:
        agent = self.registry.get(name)
        if agent is None:
            return self.error(exchange.dialect, 404, f"no agent is called {name[:80]!r}: GET /api/agents lists them")
        if not agent.eligible:
            return self.error(exchange.dialect, 503, f"agent {agent.name!r} is {agent.status}")
        exchange.why = "named by the request"
        exchange.take(self.registry.take(agent))
        return Forward(agent)

    def _merged(self, route: Route) -> Answer:
        agents = [agent for agent in self.registry if agent.online]
        if not agents:
            problem = NO_AGENTS if len(self.registry) == 0 else f"no agent is online: {self._states()}"
            return self.error(route.dialect, 503, problem)
        match route.path:
            case "/api/tags":
                value: dict[str, Any] = merging.tags(agents)
            case "/api/ps":
                value = merging.running(agents)
            case _:
                value = merging.openai_models(agents)
        return Answer(200, json.dumps(value, separators=(",", ":")).encode())
