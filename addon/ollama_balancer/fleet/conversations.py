"""Which agent has read the beginning of a prompt: it may still have it in its cache. Keeps hashes, no text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agent import Agent

MOST = 20_000
"""Beginnings that are known; the one not met for longest makes room."""


class Conversations:
    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: OrderedDict[bytes, tuple[Agent, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, steps: Sequence[tuple[bytes, int]]) -> tuple[Agent | None, int]:
        """The agent that read the longest of these beginnings last, and the tokens of it; None and 0: nobody did."""
        known = self._known
        for key, _ in reversed(steps):
            found = known.get(key)
            if found is not None:
                known.move_to_end(key)
                return found
        return None, 0

    def remember(self, steps: Iterable[tuple[bytes, int]], agent: Agent) -> None:
        """The agent has read these beginnings now."""
        known = self._known
        for key, tokens in steps:
            known[key] = agent, tokens
            known.move_to_end(key)
        while len(known) > self._most:
            known.popitem(last=False)

    def forget(self, agent: Agent) -> None:
        """The agent is gone."""
        for key in [key for key, (who, _) in self._known.items() if who is agent]:
            del self._known[key]
