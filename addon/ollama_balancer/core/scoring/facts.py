"""What the estimates of an agent rest on: its GPUs, its server's version, the digests of its models.

They are compared with what it says of itself now, and what no longer holds is forgotten: all of an agent with other
GPUs, and what was learned of a model that has another digest. Under another version of Ollama the speeds count as one
observation each, and the slots are learned anew, as they are where the agent reports other ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..agent import Agent
from .estimates import MAX_MODELS, Estimates

if TYPE_CHECKING:
    from agent_reporter.wire import AgentMetrics, GpuMetrics

MAX_HARDWARE = 500
"""Characters."""

UNKNOWN_MEMORY = "? GiB"


def hardware_of(gpus: Sequence[GpuMetrics]) -> str:
    """The GPUs in one spelling: their names, and their memory in total."""
    names = " + ".join(sorted(gpu.name for gpu in gpus))[: MAX_HARDWARE - 20]
    sizes = [gpu.memory_total for gpu in gpus]
    total = UNKNOWN_MEMORY if None in sizes else f"{sum(filter(None, sizes)) / 2**30:.0f} GiB"
    return f"{names}, {total}"


def _same(hardware: str, other: str) -> bool:
    """Whether they may be the same GPUs: a driver does not tell their memory every time."""
    if hardware == other:
        return True
    names, _, memory = hardware.rpartition(", ")
    other_names, _, other_memory = other.rpartition(", ")
    return names == other_names and UNKNOWN_MEMORY in (memory, other_memory)


class Facts:
    """Agents are named by their ids."""

    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._likeness = estimates.likeness
        self.versions: dict[str, str] = {}
        """Of the server, by agent."""
        self.parallel: dict[str, int] = {}
        """By agent, the slots that it has reported."""
        self._gpus: dict[str, list[tuple[str, int | None]]] = {}
        """Names and memory of the last report, by agent, as most reports repeat them."""
        self.on_slots_void: Callable[[Agent], None] = lambda agent: None
        """Called when what was learned of an agent's slots does not hold any more."""

    def models_listed(self, agent: Agent) -> None:
        """It has listed its models, of which some are others than before."""
        if agent.removed:
            return
        likeness, listed = self._likeness, agent.models or {}
        for model, entry in listed.items():
            details = entry.model_extra or {}
            digest, size = details.get("digest"), details.get("size")
            if isinstance(size, int | float) and size > 0:
                likeness.sized(model, size, MAX_MODELS)
            if isinstance(digest, str) and digest:
                before = likeness.hold(agent.id, model, digest)
                if before is not None:
                    self._replaced(agent, model, before)
        for model in [model for model in likeness.digests.get(agent.id, ()) if model not in listed]:
            if not self._estimates.knows(agent.id, model):  # else it holds when it is pulled again
                likeness.drop(agent.id, model)

    def version_listed(self, agent: Agent, version: str) -> None:
        """It runs that version of Ollama."""
        if agent.removed:
            return
        known = self.versions.get(agent.id)
        self.versions[agent.id] = version
        if known is not None and known != version:
            self._estimates.weaken(agent.id)
            agent.rates.clear()
            self.on_slots_void(agent)

    def reported(self, agent: Agent, metrics: AgentMetrics) -> None:
        """It has reported its GPUs and slots, as far as they are known."""
        parallel = metrics.num_parallel
        if parallel is not None and parallel != self.parallel.get(agent.id):
            self.parallel[agent.id] = parallel
            self.on_slots_void(agent)
        if not metrics.gpus:
            return
        gpus = [(gpu.name, gpu.memory_total) for gpu in metrics.gpus]
        if gpus == self._gpus.get(agent.id):
            return
        self._gpus[agent.id] = gpus
        hardware = hardware_of(metrics.gpus)
        known = self._likeness.hardware.get(agent.id)
        if hardware == known:
            return
        self._likeness.hardware[agent.id] = hardware
        if known is not None and not _same(hardware, known):
            self._estimates.forget(agent.id)
            agent.is_another_machine()
            self.on_slots_void(agent)

    def recall(self, agent: str, hardware: str | None, version: str | None, parallel: int | None) -> tuple[bool, bool]:
        """What it was when something was learned of it: whether it is the same machine, and the same server."""
        known = self._likeness.hardware.get(agent)
        if hardware is not None and known is not None and not _same(hardware, known):
            return False, False
        if hardware is not None and known is None:
            self._likeness.hardware[agent] = hardware
        same = version is None or self.versions.setdefault(agent, version) == version
        return True, same and (parallel is None or self.parallel.setdefault(agent, parallel) == parallel)

    def recall_model(self, agent: str, model: str, digest: str | None) -> bool:
        """The digest that a model had then: whether it has it now."""
        known = self._likeness.digests.get(agent, {}).get(model)
        if digest is None or known is None:
            if digest is not None:
                self._likeness.hold(agent, model, digest)
            return True
        return known.startswith(digest)

    def forget(self, agent: str) -> None:
        """It has left."""
        self.versions.pop(agent, None)
        self.parallel.pop(agent, None)
        self._gpus.pop(agent, None)
        self._likeness.forget(agent)

    def _replaced(self, agent: Agent, model: str, before: str) -> None:
        """The model has another digest."""
        self._estimates.forget_pair(agent.id, model)
        agent.model_replaced(model)
        if not self._likeness.is_held(model, before):
            self._estimates.forget_model(model)
