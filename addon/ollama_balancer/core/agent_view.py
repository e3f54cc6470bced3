"""An agent as data that can be written as JSON: what the control API, the dashboard and the commands show of it."""

from typing import Any

from .agent import Agent


def describe_agent(agent: Agent, now: float, *, whole: bool = True) -> dict[str, Any]:
    """The agent as the control API shows it; `now` is the registry's clock.

    Not `whole`: its metrics without the two lists of models, which can be most of it.
    """
    stats = agent.stats
    left_out = None if whole else {"models", "loaded_models"}
    return {
        "id": agent.id,
        "name": agent.name,
        "url": agent.address.url,
        "source": agent.source,
        "status": agent.status,
        "reason": agent.reason,
        "alias_of": agent.alias_of.name if agent.alias_of is not None else None,
        "strikes": agent.health.consecutive_failures,
        "models": list(agent.model_names),
        "loaded_models": [m.name for m in agent.loaded],
        "ollama_version": agent.version,
        "in_flight": agent.in_flight,
        "running": dict(agent.running),
        "loading": list(agent.loading),
        "decision": agent.decision.describe(now) if agent.decision else None,
        "slots": agent.slots,
        "metrics": agent.metrics.model_dump(mode="json", exclude=left_out) if agent.metrics else None,
        "metrics_age": round(now - agent.metrics_at, 3) if agent.metrics else None,
        "stale": not agent.fresh,
        "score": agent.score,
        "stats": {
            "requests": stats.ended + agent.in_flight,
            "succeeded": stats.succeeded,
            "failed": stats.failed,
            "cancelled": stats.cancelled,
            "rejected": stats.rejected,
            "avg_response_time": round(stats.response_seconds / stats.succeeded * 1000, 3) if stats.succeeded else None,
            "tokens_per_second": {model: round(speed, 2) for model, speed in stats.speeds.items()},
        },
    }
