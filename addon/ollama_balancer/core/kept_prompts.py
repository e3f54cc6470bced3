"""How many prompts a host keeps cached, as it has shown.

That is not the number of its slots: llama.cpp's server, and Ollama with it from 0.30 on, keep more of them in main
memory, and Ollama before that gives a new prompt the first free slot. See
https://github.com/ggml-org/llama.cpp/pull/16391
"""

from collections.abc import Mapping
from dataclasses import dataclass

MAX_MODELS = 1000
"""Models of which that is known, per agent."""


@dataclass(slots=True)
class Shown:
    """What has been shown of one model."""

    kept: int | None = None
    """None: nothing else than as many as it has slots."""
    missed: int | None = None
    """The depth at which one was not cached that should have been. A second time is needed to believe it."""

    def observe(self, depth: int, slots: int, *, cached: bool) -> None:
        """A prompt after which `depth` others had been read was still cached, or was not."""
        kept = slots if self.kept is None else self.kept
        if cached:
            if depth >= kept:
                self.kept = depth + 1
            if self.missed is not None and depth >= self.missed:
                self.missed = None
        elif depth < kept:
            if self.missed is None:
                self.missed = depth
            else:
                self.kept, self.missed = max(1, depth, self.missed), min(depth, self.missed)


class KeptPrompts:
    """Of one agent, by model."""

    def __init__(self) -> None:
        self._shown: dict[str, Shown] = {}

    def of(self, model: str, slots: int) -> int:
        """How many prompts of the model it keeps: as many as it has slots, unless it has shown otherwise."""
        shown = self._shown.get(model)
        return slots if shown is None or shown.kept is None else shown.kept

    def observe(self, model: str, depth: int, slots: int, *, cached: bool) -> None:
        """It had read `depth` other prompts of the model since, and still had one cached, or had not."""
        shown = self._shown.get(model)
        if shown is None:
            if len(self._shown) >= MAX_MODELS:
                return
            shown = self._shown[model] = Shown()
        shown.observe(depth, slots, cached=cached)

    def known(self) -> dict[str, int]:
        """By model, where it has shown something else than its slots."""
        return {model: shown.kept for model, shown in self._shown.items() if shown.kept is not None}

    def recall(self, known: Mapping[str, int]) -> None:
        """What was known before; what is known since counts more."""
        self._shown = {model: Shown(kept) for model, kept in known.items()} | self._shown

    def forget(self, model: str) -> None:
        self._shown.pop(model, None)

    def clear(self) -> None:
        self._shown.clear()
