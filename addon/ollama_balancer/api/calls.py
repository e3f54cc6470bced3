"""All calls of the control API: its routes and its OpenAPI document are generated from this table."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from agent_reporter.limits import MAX_BODY_BYTES
from agent_reporter.wire import AgentMetrics, AgentRegistration

from ..core.history import MINUTES
from ..gateway.reachability import REACHABLE_HEADER
from . import models
from .paths import AGENTS, BALANCER, HEALTH, HISTORY, METRICS, OPENAPI

JSON = "application/json"
OPENMETRICS = "application/openmetrics-text"


@dataclass(frozen=True)
class Answer:
    """A response. `content`: the model of its JSON, or its media types if it is not JSON; None: no body."""

    text: str
    content: type[BaseModel] | tuple[str, ...] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Response headers and their descriptions."""


@dataclass(frozen=True)
class Parameter:
    """A query parameter."""

    name: str
    text: str
    schema: dict[str, Any]


@dataclass(frozen=True)
class Call:
    """`operation` is the key of its handler in `ControlApi`. Each GET also answers HEAD."""

    method: str
    path: str
    operation: str
    text: str
    answers: dict[int, Answer]
    """By status, in addition to those that any call may return."""
    needs_token: bool = False
    body: type[BaseModel] | None = None
    body_required: bool = True
    query: tuple[Parameter, ...] = ()


def _error(text: str, **headers: str) -> Answer:
    return Answer(text, models.Error, {name.replace("_", "-"): value for name, value in headers.items()})


OF_ANY_CALL = {
    403: _error("The caller is a web page of another origin, or its address is not allowed."),
    405: _error("The path does not allow the method.", Allow="The methods that it allows."),
    414: _error("The path and query are too long."),
    431: _error("The headers are too long."),
}
OF_BODIES = {
    400: _error("The body is malformed or out of range; the error names the field."),
    413: _error(f"The body is larger than {MAX_BODY_BYTES} bytes."),
    503: _error("The balancer has no memory left for request bodies (balancer_memory).", Retry_After="Seconds."),
}
OF_CHANGES = {
    401: _error("The token is missing or wrong.", WWW_Authenticate="`Bearer`."),
    429: _error("Too many wrong tokens from this address.", Retry_After="Seconds."),
}
UNKNOWN_AGENT = {404: _error("No agent has that id or name.")}

_AGENT = AGENTS + "/{id}"


def _page(operation: str, path: str, text: str, media_type: str) -> Call:
    return Call("GET", path, operation, text, {200: Answer(text, (media_type,))})


CALLS = (
    Call(
        "GET",
        HEALTH,
        "health",
        "Whether an agent can serve",
        {
            200: Answer("An agent can serve.", models.Health),
            503: Answer("No agent can serve, or the balancer is shutting down.", models.Health),
        },
    ),
    Call(
        "GET",
        METRICS,
        "prometheus",
        "Metrics for Prometheus, as text or OpenMetrics",
        {200: Answer("The metrics.", ("text/plain", OPENMETRICS), {"Vary": "`Accept`."})},
    ),
    _page("page", "/dashboard", "A live page of the fleet", "text/html"),
    _page("script", "/dashboard/page.js", "The page's script", "text/javascript"),
    _page("style", "/dashboard/page.css", "The page's style", "text/css"),
    Call(
        "GET",
        "/dashboard/data",
        "data",
        "The dashboard's data",
        {200: Answer("One page of agents, and the state of the fleet.", models.DashboardData)},
        query=(
            Parameter("filter", "Part of an agent's name, status or model.", {"type": "string"}),
            Parameter(
                "sort", "Sort order: status, in_flight, cpu, memory or gpu; otherwise by name.", {"type": "string"}
            ),
            Parameter("size", "Agents per page, 1 to 100; default 50.", {"type": "string"}),
            Parameter("page", "Page number; default 1.", {"type": "string"}),
        ),
    ),
    Call(
        "GET",
        BALANCER,
        "balancer",
        "Mode, totals, the queue, agents by status",
        {200: Answer("The state.", models.BalancerState)},
    ),
    Call(
        "GET",
        HISTORY,
        "history",
        "Ended requests, minute by minute",
        {
            200: Answer("A page of minutes.", models.History),
            400: _error("A parameter is out of range; the error names it."),
        },
        query=(
            Parameter(
                "minutes",
                "How many minutes back.",
                {"type": "integer", "minimum": 1, "maximum": MINUTES, "default": 60},
            ),
            Parameter(
                "after", "Only minutes after that time; `next` contains it.", {"type": "string", "format": "date-time"}
            ),
            Parameter("agent", "Only rows of the agent with that name.", {"type": "string"}),
            Parameter("model", "Only rows of that model.", {"type": "string"}),
        ),
    ),
    Call(
        "GET",
        OPENAPI,
        "openapi",
        "This document",
        {200: Answer("An OpenAPI 3.1 document.", (JSON,))},
    ),
    Call("GET", AGENTS, "agents", "All agents", {200: Answer("The agents.", models.AgentList)}),
    Call(
        "POST",
        AGENTS,
        "register",
        "Register an agent, or the new address of a known one",
        {
            200: Answer("The agent was known.", models.RegisteredAgent),
            201: Answer("The agent is new.", models.RegisteredAgent),
            409: _error("The name belongs to a configured agent at another address, or to another host that reports."),
        },
        needs_token=True,
        body=AgentRegistration,
    ),
    Call(
        "GET",
        _AGENT,
        "agent",
        "One agent, with what was learned about it",
        {200: Answer("The agent.", models.AgentDetails), **UNKNOWN_AGENT},
    ),
    Call(
        "DELETE",
        _AGENT,
        "delete",
        "Remove an agent; its running requests finish",
        {204: Answer("The agent was removed."), **UNKNOWN_AGENT},
        needs_token=True,
    ),
    Call(
        "POST",
        _AGENT + "/metrics",
        "metrics",
        "Store an agent's report",
        {
            204: Answer(
                "The report is stored, unless it is older than the last one.",
                None,
                {REACHABLE_HEADER: "`no; REASON` if the balancer cannot reach the agent."},
            ),
            **UNKNOWN_AGENT,
        },
        needs_token=True,
        body=AgentMetrics,
    ),
    Call(
        "POST",
        _AGENT + "/drain",
        "drain",
        "Drain an agent: no new requests, running ones finish",
        {200: Answer("The agent.", models.AgentDetails), **UNKNOWN_AGENT},
        needs_token=True,
        body=models.DrainRequest,
        body_required=False,
    ),
    Call(
        "POST",
        _AGENT + "/resume",
        "resume",
        "Resume a drained agent",
        {200: Answer("The agent.", models.AgentDetails), **UNKNOWN_AGENT},
        needs_token=True,
    ),
)


def answers_of(call: Call) -> dict[int, Answer]:
    """All responses that the call may return, by status."""
    of_kind = {**(OF_BODIES if call.body else {}), **(OF_CHANGES if call.needs_token else {})}
    return dict(sorted({**OF_ANY_CALL, **of_kind, **call.answers}.items()))
