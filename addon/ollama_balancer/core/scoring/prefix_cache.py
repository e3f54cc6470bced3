"""Which agent has read the beginning of a prompt, and may still have it in its cache. Keeps hashes, no text.

A host keeps for each of its slots what it has read there last (its prefix cache). A new prompt is read in the slot that
begins like it, else in the one that was not used for longest. So a beginning is there until the model is out of memory
or as many new prompts have been read as the host has slots.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..agent import Agent
from ..agent_records import LoadedModel

MOST = 20_000
"""Beginnings that are known; the one not met for longest makes room."""


class _Reader(NamedTuple):
    agent: Agent
    tokens: int
    loaded_model: LoadedModel | None
    """The model that read it; None: as long as the agent is there."""
    until: int
    """The number of new prompts at which it is gone."""


class PrefixCache:
    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: OrderedDict[bytes, _Reader] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, prefixes: Sequence[tuple[bytes, int]]) -> tuple[Agent | None, int]:
        """The agent that read the longest of these beginnings last, and the tokens of it; None and 0: nobody did."""
        known = self._known
        for key, _ in reversed(prefixes):
            found = known.get(key)
            if found is not None:
                agent, tokens, loaded_model, until = found
                if loaded_model is None or (loaded_model.reads < until and not loaded_model.gone):
                    known.move_to_end(key)
                    return agent, tokens
                del known[key]
        return None, 0

    def remember(
        self,
        prefixes: Iterable[tuple[bytes, int]],
        agent: Agent,
        loaded_model: LoadedModel | None = None,
        slots: int = 1,
    ) -> None:
        """The agent has read these beginnings now, with a model that has so many slots there."""
        known = self._known
        until = 0 if loaded_model is None else loaded_model.reads + slots
        for key, tokens in prefixes:
            known[key] = _Reader(agent, tokens, loaded_model, until)
            known.move_to_end(key)
        while len(known) > self._most:
            known.popitem(last=False)

    def forget(self, agent: Agent) -> None:
        """The agent is gone."""
        for key in [key for key, reader in self._known.items() if reader.agent is agent]:
            del self._known[key]
