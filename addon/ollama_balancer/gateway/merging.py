"""Merged answers for the whole fleet, cached until the fleet changes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..core.agent import Agent
from ..core.registry import AgentRegistry
from ..ollama.compact_json import compact
from ..ollama.times import read_time
from ..text import first_names
from .running_models import MAX_AGENTS_SHOWN, RunningModels

if TYPE_CHECKING:
    from agent_reporter.wire import ModelEntry

type MayUse = Callable[[str], bool]

ROOT = b"Ollama is running"

_NUMBER = re.compile(r"\d+")


class MergedFleet:
    """The merged lists as JSON bytes, as a single server with all the models would send them.

    Cached; a change costs one step per agent that has the model.
    """

    def __init__(self, registry: AgentRegistry) -> None:
        self._registry = registry
        registry.fleet.changed_models.update(registry.inventory.models())
        self._merged: dict[str, tuple[datetime, ModelEntry, bytes]] = {}
        """By canonical name: when the shown entry was modified, the entry, and its JSON."""
        self._tags = _models([])
        self._openai = _openai_list([])
        self._generation = -1
        self._running = _models([])
        self._loaded = RunningModels()
        self._version: bytes | None = None

    def tags(self, may_use: MayUse | None = None) -> bytes:
        """GET /api/tags: one entry a model, the newest where agents differ; `balancer` then says who has what.

        `may_use` leaves models out, given by their canonical names.
        """
        self._merge_models()
        if may_use is None:
            return self._tags
        return _models([entry[2] for entry in self._sorted(may_use)])

    def openai_models(self, may_use: MayUse | None = None) -> bytes:
        """GET /v1/models."""
        self._merge_models()
        if may_use is None:
            return self._openai
        return _openai_list([(entry.name, modified) for modified, entry, _ in self._sorted(may_use)])

    def running(self, may_use: MayUse | None = None) -> bytes:
        """GET /api/ps: an entry a loaded model. `agent` names who has it, `balancer.agents` what each says."""
        self._merge_states()
        if may_use is None:
            return self._running
        return _models([entry for name, entry in self._loaded.entries() if may_use(name)])

    def version(self) -> bytes | None:
        """GET /api/version: the lowest in the fleet, so that clients use what all agents can; None: none is known."""
        self._merge_states()
        return self._version

    def _merge_models(self) -> None:
        registry = self._registry
        registry.expire()
        changed = registry.fleet.changed_models
        if not changed:
            return
        for model in changed:
            merged = _merge(
                [agent for agent in registry.inventory.holders(model) if agent.online and agent.alias_of is None], model
            )
            if merged is None:
                self._merged.pop(model, None)
            else:
                self._merged[model] = merged
        changed.clear()
        entries = self._sorted(lambda name: True)
        self._tags = _models([entry[2] for entry in entries])
        self._openai = _openai_list([(entry.name, modified) for modified, entry, _ in entries])

    def _sorted(self, may_use: MayUse) -> list[tuple[datetime, ModelEntry, bytes]]:
        """As the server: the newest first, in whole seconds, then by name."""
        entries = [merged for name, merged in self._merged.items() if may_use(name)]
        return sorted(entries, key=lambda merged: (-int(merged[0].timestamp()), merged[1].name))

    def _merge_states(self) -> None:
        registry = self._registry
        registry.expire()
        if self._generation == registry.fleet.generation:
            return
        self._generation = registry.fleet.generation
        agents = [agent for agent in registry if agent.online and agent.alias_of is None]
        self._loaded.update(agents)
        self._running = _models([entry for _, entry in self._loaded.entries()])
        versions = {agent.version for agent in agents if agent.version is not None}
        self._version = json.dumps({"version": min(versions, key=_version_key)}).encode() if versions else None


def _merge(agents: list[Agent], model: str) -> tuple[datetime, ModelEntry, bytes] | None:
    newest: tuple[datetime, ModelEntry] | None = None
    holders: dict[str, list[str]] = {}
    for agent in agents:
        entry = (agent.models or {})[model]
        modified = read_time((entry.model_extra or {}).get("modified_at"))
        if newest is None or modified > newest[0]:
            newest = (modified, entry)
        digest = (entry.model_extra or {}).get("digest")
        if isinstance(digest, str) and digest:
            holders.setdefault(digest, []).append(agent.name)
    if newest is None:
        return None
    modified, entry = newest
    if len(holders) < 2:
        return modified, entry, _json(entry)
    return (
        modified,
        entry,
        _json(entry, balancer={"digests": {d: first_names(names, MAX_AGENTS_SHOWN) for d, names in holders.items()}}),
    )


def _models(entries: list[bytes]) -> bytes:
    return b'{"models":[' + b",".join(entries) + b"]}"


def _openai_list(models: list[tuple[str, datetime]]) -> bytes:
    data = [
        {"id": name, "object": "model", "created": max(0, int(modified.timestamp())), "owned_by": "library"}
        for name, modified in models
    ]
    return compact({"object": "list", "data": data})


def _json(entry: ModelEntry, **more: Any) -> bytes:
    return compact(entry.model_dump(mode="json") | more)


@lru_cache(maxsize=1024)
def _version_key(version: str) -> tuple[list[int], bool, str]:
    """Orders versions: 0.9.0 < 0.33.0-rc2 < 0.33.0."""
    release, dash, pre = version.partition("-")
    return [int(number) for number in _NUMBER.findall(release)[:8]], not dash, pre
