"""Which models the agents have on disk, and which are loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Set
from datetime import datetime
from typing import TYPE_CHECKING

from .agent import Agent, size_of
from .agent_records import MAX_LOADED, LoadedModel
from .fleet import Fleet

if TYPE_CHECKING:
    from agent_reporter.wire import ModelEntry


KEEP_ALIVE_SLACK = 3.0
"""Seconds before a model is due to be unloaded from when on it may not be listed: hosts give their time in seconds, and
that of a report, which is made after the list."""

MAX_INTERNED = 4_096
"""Entries that others are compared with; hosts may name as many models as they like."""


class ModelInterner:
    """The hosts of a fleet mostly have the same models, whose details are kept once.

    Replaces the values of an entry by those of an earlier one with the same name and digest, where they are equal.

    An entry as `/api/tags` gives it takes 2.8 kB alone, and 0.6 kB with interned values.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, int], ModelEntry] = {}
        """By name, digest and number of fields: lists of loaded models have more of them."""

    def intern(self, entry: ModelEntry) -> ModelEntry:
        """The entry, or an equal one with interned values."""
        fields = entry.model_extra or {}
        digest = fields.get("digest")
        if not isinstance(digest, str):
            return entry
        key = entry.name, digest, len(fields)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MAX_INTERNED:
                self._known.clear()
            self._known[key] = entry
            return entry
        shared = {
            field: each
            if type(each := (known.model_extra or {}).get(field)) is type(value) and each == value
            else value
            for field, value in fields.items()
        }
        same_fields = known.model_fields_set == entry.model_fields_set
        equal = entry.model_construct((known if same_fields else entry).model_fields_set, name=known.name)
        if equal.model_extra is None:
            return entry
        equal.model_extra.update(shared)  # as arguments, names of fields could be those of other arguments
        return equal


class Inventory:
    """`canonical_name` gives the one spelling of a model's name by which models are told apart."""

    def __init__(self, fleet: Fleet, canonical_name: Callable[[str], str]) -> None:
        self._fleet = fleet
        self._canonical_name = canonical_name
        self._interner = ModelInterner()
        self.on_evicted: Callable[[Agent, str], None] = lambda agent, model: None
        """Called when a model is not in an agent's memory any more."""

    def holders(self, model: str) -> list[Agent]:
        """The agents known to have the model (a canonical name), in whatever state."""
        return list(self._fleet.holders.get(model, ()))

    def models(self) -> list[str]:
        """The canonical names of all models that any agent has, in whatever state."""
        return list(self._fleet.holders)

    def has_model(self, model: str) -> bool:
        """Whether any agent, in whatever state, is known to have the model."""
        return model in self._fleet.holders

    def may_have_unknown_models(self) -> bool:
        """Whether there is an agent, in whatever state, whose models are not known yet."""
        return bool(self._fleet.undiscovered)

    def update_models(self, agent: Agent, entries: list[ModelEntry]) -> None:
        """Store which models the agent has. If it has not changed, the stored entries replace the list's."""
        fleet, old = self._fleet, agent.models
        names = [entry.name for entry in entries]
        if old is not None and names == agent.model_names and len(old) == len(entries):
            others = False
            for (model, known), entry in zip(old.items(), entries, strict=True):
                if known.__pydantic_extra__ != entry.__pydantic_extra__:  # `model_extra`, without a call for each model
                    old[model] = self._interner.intern(entry)
                    fleet.changed_models.add(model)
                    others = True
            entries[:] = old.values()
            if others:
                agent.models_listed(old, names)
                fleet.learner.facts.models_listed(agent)
            return
        entries[:] = map(self._interner.intern, entries)
        old = old or {}
        new = {self._canonical_name(entry.name): entry for entry in entries}
        agent.models_listed(new, names)
        if agent.removed:
            return
        fleet.undiscovered.pop(agent, None)
        fleet.learner.facts.models_listed(agent)
        fleet.changed_models.update(old, new)
        for model in old.keys() - new.keys():
            fleet.forget_holder(model, agent)
        for model in new.keys() - old.keys():
            fleet.holders.setdefault(model, {})[agent] = None
        fleet.eligibility_changed(agent)

    def forget_model(self, agent: Agent, model: str) -> None:
        """The agent does not have the model (a canonical name) any more."""
        if agent.models is not None and model in agent.models:
            self.update_models(agent, [entry for name, entry in agent.models.items() if name != model])

    def update_loaded(
        self,
        agent: Agent,
        entries: list[ModelEntry],
        as_of: float | None = None,
        *,
        host_time: float | None = None,
    ) -> None:
        """Store which models the agent has loaded, as of a time of the registry's clock, by default now.

        `host_time`: what the host's own clock showed then, in seconds since 1970; None: that is not known. A list older
        than the stored one is dropped. A model that has answered since then, or is answering, counts as loaded whatever
        the list says. One that is not listed and has been sent requests has been evicted: its server has to load it for
        them.
        """
        now = self._fleet.clock()
        if as_of is not None and as_of < agent.loaded_at:
            return
        agent.loaded_at = as_of = now if as_of is None else as_of
        given, entries, entries_before = entries, entries[:MAX_LOADED], agent.loaded
        known = agent.memory_known
        if not known:
            agent.memory_known = True
            agent.epoch += 1
        if entries != agent.loaded:
            given[:MAX_LOADED] = agent.loaded = entries = list(map(self._interner.intern, entries))
            self._fleet.generation += 1
        else:
            given[:MAX_LOADED] = agent.loaded
        old, names = agent.loaded_models, [entry.name for entry in entries]
        if names != agent.loaded_names:
            agent.loaded_names = names
            before, agent.listed = agent.listed, {self._canonical_name(entry.name): entry for entry in agent.loaded}
            agent.unlisted.update(agent.models or {}, agent.listed)
            self._fleet.memory_changed(agent)
            expired = self._expired(entries_before, host_time)
            self._learn_memory(agent, before.keys() if known else set(), expired, now)
        if old.keys() == agent.listed.keys():
            return
        unloads = agent.memory.unloads
        new = {name: old.get(name) or LoadedModel() for name in agent.listed if unloads.get(name, -math.inf) <= as_of}
        for name, loaded_model in old.items():
            if name in agent.answering or loaded_model.proven_at > as_of:
                new.setdefault(name, loaded_model)
        if new.keys() != old.keys():
            agent.loaded_models = new
            for name in old.keys() - new.keys():
                old[name].gone = True
                self.on_evicted(agent, name)
            self._fleet.memory_changed(agent)

    def _expired(self, entries: Iterable[ModelEntry], host_time: float | None) -> set[str]:
        """Of these, those that were to be unloaded by then, as nobody had asked for them."""
        if host_time is None:
            return set()
        latest = host_time + KEEP_ALIVE_SLACK
        return {self._canonical_name(entry.name) for entry in entries if _expires_at(entry) < latest}

    def _learn_memory(self, agent: Agent, before: Set[str], expired: Set[str], now: float) -> None:
        """Learn what fits from a list that differs from the one before."""
        memory, listed = agent.memory, agent.listed.keys()
        sizes = {self._canonical_name(entry.name): size for entry in agent.loaded if (size := size_of(entry))}
        memory.listed(listed, sizes)
        gone = {model for model in before - listed if memory.was_evicted(model, now)} - expired
        if gone and agent.loading:
            loading = next(iter(agent.loading))  # its server loads them one after the other
            memory.guess(loading, agent.file_size(loading))
            if memory.total({*listed, loading}) <= memory.expected:
                agent.evicting.discard(loading)
        if gone and listed - before:
            memory.evicted(listed, gone, now)
        elif gone and (unlisted := [model for model in agent.loading if model not in agent.listed]):
            # Its server lists a model when the load is over, or at once.
            memory.guess(unlisted[0], agent.file_size(unlisted[0]))
            memory.evicted(listed | {unlisted[0]}, gone, now)
        agent.epoch += 1

    def unloaded(self, agent: Agent, model: str) -> None:
        """The agent has confirmed that it unloads the model (a canonical name) once no request runs on it."""
        if agent.removed or model in agent.running:
            return
        agent.memory.unloading(model, self._fleet.clock())
        loaded_model = agent.loaded_models.get(model)
        if loaded_model is not None:
            loaded_model.gone = True
            agent.loaded_models = {name: other for name, other in agent.loaded_models.items() if name != model}
            self._fleet.memory_changed(agent)
        if model in agent.listed:
            left = [entry for entry in agent.loaded if self._canonical_name(entry.name) != model]
            self.update_loaded(agent, left, agent.loaded_at)

    def update_version(self, agent: Agent, version: str) -> None:
        if version != agent.version:
            agent.version = version
            self._fleet.learner.facts.version_listed(agent, version)
            self._fleet.generation += 1


def _expires_at(entry: ModelEntry) -> float:
    """When the host means to unload the model, by its own clock, in seconds since 1970; infinity: it does not tell."""
    text = (entry.model_extra or {}).get("expires_at")
    try:
        return datetime.fromisoformat(text).timestamp() if isinstance(text, str) and len(text) <= 64 else math.inf
    except (ValueError, OverflowError):
        return math.inf
