"""Which agent may have a prefix of a prompt in its KV cache. Keeps hashes, no text.

A host keeps the last prompt of each slot. A new prompt goes to the slot with the longest common prefix, else to the
least recently used one. So a prefix stays cached until the model is unloaded, or until the host has prefilled as many
new prompts as it has slots.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..agent import Agent
from ..agent_records import LoadedModel

MAX_PREFIXES = 20_000
"""Prefixes that are tracked; the least recently used one makes room."""


class _Reader(NamedTuple):
    agent: Agent
    tokens: int
    loaded_model: LoadedModel | None
    """The loaded model that has it cached; None: it stays until the agent leaves."""
    until: int
    """The count of new prompts at which it is evicted."""


class PrefixCache:
    def __init__(self, most: int = MAX_PREFIXES) -> None:
        self._most = most
        self._known: OrderedDict[bytes, _Reader] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, prefixes: Sequence[tuple[bytes, int]]) -> tuple[Agent | None, int]:
        """The agent with the longest of these prefixes cached, and its tokens; None and 0: there is none."""
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
        """The agent has prefilled these prefixes, with a model that has so many slots there."""
        known = self._known
        until = 0 if loaded_model is None else loaded_model.reads + slots
        for key, tokens in prefixes:
            known[key] = _Reader(agent, tokens, loaded_model, until)
            known.move_to_end(key)
        while len(known) > self._most:
            known.popitem(last=False)

    def forget(self, agent: Agent) -> None:
        """The agent has left."""
        for key in [key for key, reader in self._known.items() if reader.agent is agent]:
            del self._known[key]
