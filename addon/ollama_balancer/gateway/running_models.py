"""The loaded models of all agents as one server would list them: one entry per model.

Clients identify a model by name alone, to show it and to unload it, and a server never lists a name twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.agent import Agent
from ..ollama.compact_json import compact
from ..ollama.names import canonical_name
from ..ollama.times import read_time
from ..text import first_names

if TYPE_CHECKING:
    from agent_reporter.wire import ModelEntry

MAX_AGENTS_SHOWN = 20
"""Agents named per model; more are counted."""

_SHOWN_OF_EACH = ("size", "size_vram", "context_length", "expires_at")

type _Key = tuple[str, str]
"""Canonical name and digest: agents may have different builds under one name."""


class _LoadedEntry(NamedTuple):
    """One agent's entry with its parsed figures; zero if unusable."""

    entry: ModelEntry
    expires: datetime
    size: int
    size_vram: int
    context_length: int


class RunningModels:
    """Costs a step for each agent, and one more for each that has a model whose entry has changed anywhere."""

    def __init__(self) -> None:
        self._known: dict[Agent, list[ModelEntry]] = {}
        self._holders: dict[_Key, dict[Agent, _LoadedEntry]] = {}
        self._merged: dict[_Key, tuple[datetime, bytes]] = {}

    def update(self, agents: Iterable[Agent]) -> None:
        """Take over what is loaded now. `agents` are the online ones."""
        changed: set[_Key] = set()
        loaded = {agent: agent.loaded for agent in agents if agent.loaded}
        for agent in self._known.keys() - loaded.keys():
            self._drop(agent, changed)
        for agent, entries in loaded.items():
            if self._known.get(agent) is not entries:
                self._drop(agent, changed)
                for entry in entries:
                    key = _key(entry)
                    self._holders.setdefault(key, {})[agent] = _loaded_entry(entry)
                    changed.add(key)
        self._known = loaded
        for key in changed:
            if key in self._holders:
                self._merged[key] = _merge(self._holders[key])
            else:
                self._merged.pop(key, None)

    def entries(self) -> list[tuple[str, bytes]]:
        """Canonical name and JSON of each entry, those that stay in memory longest first, as the server."""
        by_expiry = sorted(sorted(self._merged), key=lambda key: self._merged[key][0], reverse=True)
        return [(key[0], self._merged[key][1]) for key in by_expiry]

    def _drop(self, agent: Agent, changed: set[_Key]) -> None:
        for entry in self._known.get(agent, ()):
            key = _key(entry)
            holders = self._holders.get(key)
            if holders is not None:
                changed.add(key)
                holders.pop(agent, None)
                if not holders:
                    del self._holders[key]


def _merge(holders: dict[Agent, _LoadedEntry]) -> tuple[datetime, bytes]:
    """The entry of the agent that keeps the model longest, with the sizes of all; `balancer` has what each one says."""
    longest = max(holders.values(), key=lambda held: held.expires)
    value = longest.entry.model_dump(mode="json")
    if len(holders) == 1:
        return longest.expires, compact(value | {"agent": next(iter(holders)).name})
    if size := sum([held.size for held in holders.values()]):
        value["size"] = size
        value["size_vram"] = sum([held.size_vram for held in holders.values()])
    if contexts := [held.context_length for held in holders.values() if held.context_length]:
        value["context_length"] = min(contexts)
    value["agent"] = ", ".join(first_names([agent.name for agent in holders], MAX_AGENTS_SHOWN))
    listed = islice(holders.items(), MAX_AGENTS_SHOWN)
    value["balancer"] = {"agents": [_described(agent, held.entry) for agent, held in listed]}
    return longest.expires, compact(value)


def _described(agent: Agent, entry: ModelEntry) -> dict[str, Any]:
    fields = entry.model_dump(mode="json")
    return {"agent": agent.name} | {name: fields[name] for name in _SHOWN_OF_EACH if name in fields}


def _loaded_entry(entry: ModelEntry) -> _LoadedEntry:
    fields = entry.model_extra or {}
    size, vram, context = (_count(fields.get(name)) for name in ("size", "size_vram", "context_length"))
    return _LoadedEntry(entry, read_time(fields.get("expires_at")), size, vram, context)


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def _key(entry: ModelEntry) -> _Key:
    digest = (entry.model_extra or {}).get("digest")
    return canonical_name(entry.name), digest if isinstance(digest, str) else ""
