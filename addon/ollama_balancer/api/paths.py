"""The paths of the control API, apart from the application, which is slow to import."""

CALLER = "ollama_balancer.caller"
"""The key of the ASGI scope under which the proxy says who calls (`gateway.callers.Caller`)."""

AGENTS = "/api/agents"
BALANCER = "/api/balancer"
EVENTS = "/api/events"
HEALTH = "/health"
HISTORY = "/api/history"
METRICS = "/metrics"
OPENAPI = "/api/openapi.json"
KEYS = "/api/keys"
JOIN = "/api/join"
JOIN_CODES = "/api/join-codes"
JOIN_PAGE = "/join"
JOIN_SCRIPTS = ("/join.sh", "/join.ps1")
USAGE = "/api/usage"
OWN_USAGE = "/api/usage/me"
SCRIPTS = (
    "agents.js",
    "charts.js",
    "dom.js",
    "events.js",
    "joining.js",
    "keys.js",
    "operating.js",
    "page.js",
    "requests.js",
    "rows.js",
    "tiles.js",
    "usage.js",
)
"""The files of the dashboard's page that are scripts."""

DASHBOARD = ("/dashboard", "/dashboard/data", "/dashboard/page.css", *(f"/dashboard/{name}" for name in SCRIPTS))

PATHS = frozenset(
    (
        AGENTS,
        BALANCER,
        EVENTS,
        HEALTH,
        HISTORY,
        JOIN,
        JOIN_CODES,
        JOIN_PAGE,
        KEYS,
        METRICS,
        OPENAPI,
        OWN_USAGE,
        USAGE,
        *DASHBOARD,
        *JOIN_SCRIPTS,
    )
)


def is_control_path(path: str) -> bool:
    """Whether the control API answers that path (without its query)."""
    return path in PATHS or path.startswith((f"{AGENTS}/", f"{KEYS}/", f"{JOIN_PAGE}/"))
