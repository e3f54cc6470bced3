"""All calls of the control API: its routes and its OpenAPI document are generated from this table."""

from functools import partial

from agent_reporter.limits import MAX_BODY_BYTES
from agent_reporter.wire import AgentMetrics, AgentRegistration

from ..core.access import Right
from ..core.events import MAX_EVENTS
from ..core.history import MINUTES
from ..core.ledger import DIMENSIONS
from ..gateway.access import OPERATE, READ, REPORT
from ..gateway.reachability import REACHABLE_HEADER
from . import models
from .call import Answer as Answer
from .call import Call as Call
from .call import Parameter, error
from .join_calls import JOIN_CALLS
from .paths import AGENTS, BALANCER, EVENTS, HEALTH, HISTORY, KEYS, METRICS, OPENAPI, OWN_USAGE, SCRIPTS, USAGE

JSON = "application/json"
CSV = "text/csv"
OPENMETRICS = "application/openmetrics-text"


OF_ANY_CALL = {
    403: error("The caller is a web page of another origin, or its address is not allowed."),
    405: error("The path does not allow the method.", Allow="The methods that it allows."),
    414: error("The path and query are too long."),
    431: error("The headers are too long."),
}
OF_BODIES = {
    400: error("The body is malformed or out of range; the error names the field."),
    413: error(f"The body is larger than {MAX_BODY_BYTES} bytes."),
    503: error("The balancer has no memory left for request bodies (balancer_memory).", Retry_After="Seconds."),
}
OF_KEYED_CALLS = {
    401: error("The token or key is missing or wrong.", WWW_Authenticate="`Bearer`."),
    403: error(
        "The caller is a web page of another origin, its address is not allowed, or its key lacks the right for this."
    ),
    429: error("Too many wrong tokens or keys from this address.", Retry_After="Seconds."),
    503: error("No key can be checked now, or there is no memory left.", Retry_After="Seconds."),
}
UNKNOWN_KEY = {404: error("No key has that name.")}
OTHERS_HOST = {409: error("The agent's host is another agent too, which is not this key's.")}
UNKNOWN_AGENT = {404: error("No agent has that id or name.")}

_AGENT = AGENTS + "/{id}"
_KEY = KEYS + "/{name}"

_DIMENSION = f"({'|'.join(DIMENSIONS)})"
_GROUPED_BY = f"^{_DIMENSION}(,{_DIMENSION})*$"
_DAY_OR_TIME = {"type": "string", "anyOf": [{"format": "date"}, {"format": "date-time"}]}


def _usage(operation: str, path: str, text: str, default: str, rights: tuple[Right, ...], *, always: bool) -> Call:
    return Call(
        "GET",
        path,
        operation,
        text,
        {
            200: Answer("The sums of each group.", models.Usage, also=(CSV,)),
            400: error("A parameter is out of range, or there are too many groups; the error says which."),
            503: error("No key can be checked now, or the usage file cannot be read.", Retry_After="Seconds."),
        },
        query=(
            Parameter("by", "What to group by.", {"type": "string", "pattern": _GROUPED_BY, "default": default}),
            Parameter("from", "The first day, or a time; default 30 days ago.", _DAY_OR_TIME),
            Parameter("to", "The last day, or the time of the end; default today.", _DAY_OR_TIME),
            Parameter("format", "Of the answer.", {"type": "string", "enum": ["json", "csv"], "default": "json"}),
        ),
        rights=rights,
        always=always,
    )


_for_operators = partial(Call, rights=OPERATE, always=True)
_for_reporters = partial(Call, rights=REPORT, always=True)


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
        rights=READ,
    ),
    _page("page", "/dashboard", "A live page of the fleet", "text/html"),
    *(_page(name, f"/dashboard/{name}", "A script of the page", "text/javascript") for name in SCRIPTS),
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
            Parameter("curves", "no: without the last quarter of an hour.", {"type": "string"}),
        ),
        rights=READ,
    ),
    Call(
        "GET",
        BALANCER,
        "balancer",
        "Mode, totals, the queue, agents by status",
        {200: Answer("The state.", models.BalancerState)},
        rights=READ,
    ),
    Call(
        "GET",
        HISTORY,
        "history",
        "Ended requests, minute by minute",
        {
            200: Answer("A page of minutes.", models.History),
            400: error("A parameter is out of range; the error names it."),
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
        rights=READ,
    ),
    Call(
        "GET",
        EVENTS,
        "events",
        "What has happened to the fleet, with reasons: the last 1,000 changes of state",
        {
            200: Answer("Events, the oldest first.", models.EventList),
            400: error("A parameter is out of range; the error names it."),
        },
        query=(
            Parameter(
                "limit",
                "How many: the last ones, or with `after` the first ones.",
                {"type": "integer", "minimum": 1, "maximum": MAX_EVENTS, "default": 100},
            ),
            Parameter(
                "after",
                "Only events after that number; `next` contains it.",
                {"type": "integer", "minimum": 0, "maximum": 2**53 - 1},
            ),
        ),
        rights=READ,
    ),
    _usage("usage", USAGE, "Who used what: requests, tokens and seconds", "key", READ, always=False),
    _usage("own_usage", OWN_USAGE, "What the caller's own key has used", "model", tuple(Right), always=True),
    Call(
        "GET",
        OPENAPI,
        "openapi",
        "This document",
        {200: Answer("An OpenAPI 3.1 document.", (JSON,))},
    ),
    *JOIN_CALLS,
    Call("GET", AGENTS, "agents", "All agents", {200: Answer("The agents.", models.AgentList)}, rights=READ),
    _for_reporters(
        "POST",
        AGENTS,
        "register",
        "Register an agent, or the new address of a known one",
        {
            200: Answer("The agent was known.", models.RegisteredAgent),
            201: Answer("The agent is new.", models.RegisteredAgent),
            409: error("The name belongs to a configured agent at another address, or to another host that reports."),
        },
        body=AgentRegistration,
    ),
    Call(
        "GET",
        _AGENT,
        "agent",
        "One agent, with what was learned about it",
        {200: Answer("The agent.", models.AgentDetails), **UNKNOWN_AGENT},
        rights=READ,
    ),
    _for_operators(
        "DELETE",
        _AGENT,
        "delete",
        "Remove an agent; its running requests finish",
        {204: Answer("The agent was removed."), **UNKNOWN_AGENT},
    ),
    _for_reporters(
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
        body=AgentMetrics,
    ),
    _for_reporters(
        "POST",
        _AGENT + "/drain",
        "drain",
        "Drain an agent: no new requests, running ones finish",
        {200: Answer("The agent.", models.AgentDetails), **OTHERS_HOST, **UNKNOWN_AGENT},
        body=models.DrainRequest,
        body_required=False,
    ),
    _for_reporters(
        "POST",
        _AGENT + "/resume",
        "resume",
        "Resume a drained agent",
        {200: Answer("The agent.", models.AgentDetails), **OTHERS_HOST, **UNKNOWN_AGENT},
    ),
    _for_operators(
        "GET",
        KEYS,
        "keys",
        "All client keys, without their secrets",
        {200: Answer("The keys.", models.KeyList)},
    ),
    _for_operators(
        "POST",
        KEYS,
        "add_key",
        "Add a client key",
        {
            201: Answer("The key, with its secret, which is shown only now.", models.NewKey),
            409: error("A key of that name exists."),
        },
        body=models.AddKey,
    ),
    _for_operators(
        "GET",
        _KEY,
        "key",
        "One client key",
        {200: Answer("The key.", models.KeyDetails), **UNKNOWN_KEY},
    ),
    _for_operators(
        "PATCH",
        _KEY,
        "change_key",
        "Change a client key; what the body leaves out stays",
        {200: Answer("The key.", models.KeyDetails), **UNKNOWN_KEY},
        body=models.ChangeKey,
    ),
    _for_operators(
        "DELETE",
        _KEY,
        "remove_key",
        "Remove a client key; its running requests finish",
        {204: Answer("The key was removed."), **UNKNOWN_KEY},
    ),
    _for_operators(
        "POST",
        _KEY + "/rotate",
        "rotate_key",
        "Give a client key a new secret; the old one stays valid for a while",
        {200: Answer("The key, with its new secret, which is shown only now.", models.NewKey), **UNKNOWN_KEY},
        body=models.RotateKey,
        body_required=False,
    ),
)


def answers_of(call: Call) -> dict[int, Answer]:
    """All responses that the call may return, by status."""
    of_kind = {**(OF_BODIES if call.body else {}), **(OF_KEYED_CALLS if call.rights else {})}
    return dict(sorted({**OF_ANY_CALL, **of_kind, **call.answers}.items()))
