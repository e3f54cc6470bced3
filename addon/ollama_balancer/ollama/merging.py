"""The answers that concern the whole fleet, made from what is known of the agents."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from agent_reporter.wire import ModelEntry

from ..fleet.agent import Agent


def tags(agents: Iterable[Agent]) -> dict[str, Any]:
    """GET /api/tags: one entry a model, the newest where agents differ."""
    return {"models": [entry.model_dump(mode="json") for entry in _models(agents)]}


def openai_models(agents: Iterable[Agent]) -> dict[str, Any]:
    """GET /v1/models."""
    data = [
        {"id": entry.name, "object": "model", "created": int(_modified(entry).timestamp()), "owned_by": "library"}
        for entry in _models(agents)
    ]
    return {"object": "list", "data": data}


def running(agents: Iterable[Agent]) -> dict[str, Any]:
    """GET /api/ps: the loaded models of every agent, each entry with its agent's name."""
    return {
        "models": [entry.model_dump(mode="json") | {"agent": agent.name} for agent in agents for entry in agent.loaded]
    }


def _models(agents: Iterable[Agent]) -> list[ModelEntry]:
    newest: dict[str, ModelEntry] = {}
    for agent in agents:
        for name, entry in (agent.models or {}).items():
            known = newest.get(name)
            if known is None or _modified(entry) > _modified(known):
                newest[name] = entry
    return sorted(newest.values(), key=_modified, reverse=True)


def _modified(entry: ModelEntry) -> datetime:
    value = (entry.model_extra or {}).get("modified_at")
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
