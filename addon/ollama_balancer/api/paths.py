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

PATHS = frozenset((AGENTS, BALANCER, EVENTS, HEALTH, HISTORY, KEYS, METRICS, OPENAPI, OWN_USAGE, USAGE, *DASHBOARD))


def is_control_path(path: str) -> bool:
    """Whether the control API answers that path (without its query)."""
    return path in PATHS or path.startswith((f"{AGENTS}/", f"{KEYS}/"))
