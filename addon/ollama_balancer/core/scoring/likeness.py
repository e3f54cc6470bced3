"""Which agents are alike, and how large models are: what the speed of a pair is guessed from that has not met yet."""

import math
from collections import Counter

MODEL_SIZE = 5e9
"""Bytes of the model that the priors are about: 8 billion parameters of four bits and a half each."""

SMALLEST, LARGEST = 5e7, 2e12
"""Bytes: what hosts say of sizes is clipped to these."""

DIGEST = 12
"""Characters of a digest that tell models apart, as `ollama list` shows them."""


class Likeness:
    """Agents are named by their ids, models by their canonical names."""

    def __init__(self) -> None:
        self.hardware: dict[str, str] = {}
        """By agent: its GPUs, as `Facts` words them."""
        self.digests: dict[str, dict[str, str]] = {}
        """By agent and model."""
        self._holders: Counter[tuple[str, str]] = Counter()
        """By model and digest, the agents that have it."""
        self._sizes: dict[str, float] = {}
        """By model, the logarithm of its size, as a multiple of `MODEL_SIZE`."""

    def kin(self, agent: str, model: str) -> tuple[str, str] | None:
        """What the agent has in common with others that are as fast with the model: GPUs and digest. None: nobody."""
        hardware = self.hardware.get(agent)
        if hardware is None:
            return None
        digest = self.digests.get(agent, {}).get(model)
        return None if digest is None else (hardware, digest[:DIGEST])

    def size(self, model: str) -> float | None:
        """The logarithm of the model's size, as a multiple of `MODEL_SIZE`; None: it is not known."""
        return self._sizes.get(model)

    def sized(self, model: str, size: float, most: int) -> None:
        """The model has so many bytes; at most so many models are kept."""
        if model in self._sizes or len(self._sizes) < most:
            self._sizes[model] = math.log(min(LARGEST, max(SMALLEST, size)) / MODEL_SIZE)

    def hold(self, agent: str, model: str, digest: str) -> str | None:
        """The agent's model has that digest; the other one that it had before, if so."""
        digests = self.digests.setdefault(agent, {})
        known = digests.get(model)
        digests[model] = digest
        if known is None or known[:DIGEST] != digest[:DIGEST]:
            self._holders[model, digest[:DIGEST]] += 1
            if known is not None:
                self._drop(model, known)
                return known
        return None

    def is_held(self, model: str, digest: str) -> bool:
        """Whether any agent has the model with that digest."""
        return (model, digest[:DIGEST]) in self._holders

    def drop(self, agent: str, model: str) -> None:
        """The agent does not have the model any more."""
        digest = self.digests.get(agent, {}).pop(model, None)
        if digest is not None:
            self._drop(model, digest)

    def forget(self, agent: str) -> None:
        self.hardware.pop(agent, None)
        for model, digest in self.digests.pop(agent, {}).items():
            self._drop(model, digest)

    def _drop(self, model: str, digest: str) -> None:
        self._holders[model, digest[:DIGEST]] -= 1
        if self._holders[model, digest[:DIGEST]] <= 0:
            del self._holders[model, digest[:DIGEST]]
