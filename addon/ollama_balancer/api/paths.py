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
DASHBOARD = (
    "/dashboard",
    "/dashboard/data",
    "/dashboard/page.js",
    "/dashboard/usage.js",
    "/dashboard/keys.js",
    "/dashboard/events.js",
    "/dashboard/page.css",
)

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
