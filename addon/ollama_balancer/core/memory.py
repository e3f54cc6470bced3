"""What fits in a host's memory at once, learned from its lists of loaded models (GET /api/ps).

Models that are listed together fit together. A host that loads one for which another disappears has no room for both:
its server evicts only what is in the way. The cause is the memory, or the number of models that the server allows,
which is three for each GPU unless OLLAMA_MAX_LOADED_MODELS says otherwise. Until a load has shown what fits, the memory
of the GPUs decides, as reported; of a host that does not report it, one more model is expected to fit, unless together
they would take more than most GPUs have.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

EVIDENCE_SECONDS = 3600.0
"""Seconds for which an eviction counts: memory is shared with other programs, and settings change."""

MODELS_PER_GPU = 3
"""Models that Ollama keeps loaded for each GPU if there is room (`defaultModelsPerGPU` in its server/sched.go)."""

USABLE = 0.95
"""Of the memory of GPUs, the part that models can have: drivers and contexts take some."""

COMMON_MEMORY = 24e9
"""Bytes that are assumed to be all there is where nothing is known of a host's memory."""

MAX_SIZES = 1000
"""Models whose size is kept."""

UNLOAD_SECONDS = 15.0
"""Seconds from when a host confirms that it unloads a model until it is seen to have: it confirms that beforehand."""


@dataclass(eq=False, slots=True)
class Memory:
    """Sizes are bytes; models have canonical names."""

    most: int = 0
    """The most models that were listed together."""
    room: int = 0
    """The models that were left after an eviction which their sizes do not explain; 0: there was none."""
    held: int = 0
    """The most that was listed together."""
    refused: int = 0
    """The least that was too much; 0: nothing was."""
    gpus: int = 0
    """How many GPUs it reports, with their memory."""
    capacity: int = 0
    """Bytes of their memory; 0: not known."""
    evidence_at: float = -math.inf
    """When it last evicted a model for a load."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Of models that were listed."""
    unloads: dict[str, float] = field(default_factory=dict)
    """When it confirmed of late that it unloads a model."""

    def listed(self, models: Collection[str], sizes: Mapping[str, int]) -> None:
        """These are loaded together."""
        self.most = max(self.most, len(models))
        if len(models) > self.room:
            self.room = 0
        if len(self.sizes) + len(sizes) > MAX_SIZES:
            self.sizes.clear()  # those of its files stand in for them
        self.sizes.update(sizes)
        self.held = max(self.held, self.total(models))
        if self.held >= self.refused:
            self.refused = 0

    def reported(self, gpus: Sequence[int | None]) -> bool:
        """The bytes of each of its GPUs, as far as its driver tells; whether that is news."""
        known = [size for size in gpus if size]
        before = self.gpus, self.capacity
        self.gpus, self.capacity = (len(known), sum(known)) if len(known) == len(gpus) else (0, 0)
        return before != (self.gpus, self.capacity)

    def forget_loads(self) -> None:
        """It has other memory now: what was seen to fit, or not to, in its place says nothing."""
        self.most = self.room = self.held = self.refused = 0

    def guess(self, model: str, size: int) -> None:
        """A model that has not been listed takes about as much as its file, whose size is 0 if it is not known."""
        if size and len(self.sizes) < MAX_SIZES:
            self.sizes.setdefault(model, size)

    def unloading(self, model: str, now: float) -> None:
        """The host has confirmed that it unloads the model."""
        self.unloads = {name: at for name, at in self.unloads.items() if now - at < UNLOAD_SECONDS}
        self.unloads[model] = now

    def was_evicted(self, model: str, now: float) -> bool:
        """Of a model that is not listed any more: whether the host has removed it of its own accord."""
        return now - self.unloads.get(model, -math.inf) >= UNLOAD_SECONDS

    def evicted(self, left: Collection[str], gone: Collection[str], now: float) -> None:
        """The host has loaded one of those that are left, and for it evicted those that are gone."""
        self.evidence_at = now
        kept = self.total(left)
        # Of several the last one was in the way, which may have been any.
        too_much = kept + max(self.sizes.get(model, 0) for model in gone) if kept else 0
        if too_much > self.held:
            self.refused = min(too_much, self.refused or too_much)
        else:
            self.room = len(left)

    def fits(self, reported: int | None) -> int:
        """How many models fit at once, as the host reports or was seen to hold."""
        fits = reported or max(1, self.most)
        return min(fits, self.room) if self.room else fits

    def has_room(self, loaded: Collection[str], model: str, size: int, reported: int | None, now: float) -> bool:
        """Whether the model may fit beside those loaded; `size` is that of its file, 0 if it is not known."""
        if now - self.evidence_at > EVIDENCE_SECONDS:
            self.room = self.refused = 0
        if len(loaded) >= self._at_once(reported):
            return False
        total, own = self.total(loaded), self.sizes.get(model, size)
        if not total or not own or total + own <= self.held:
            return True
        if self.refused and total + own >= self.refused:
            return False
        # Where nobody says how much there is, what is less than was too much is tried.
        return (self.refused > 0 and not self.capacity) or total + own <= self.expected

    @property
    def expected(self) -> float:
        """Bytes that are expected to fit, until something is seen to."""
        return max(self.held, USABLE * self.capacity or COMMON_MEMORY)

    def _at_once(self, reported: int | None) -> int:
        """How many models may be loaded at once, whatever their sizes."""
        if reported or self.room:
            return self.fits(reported)
        return max(self.most, MODELS_PER_GPU * self.gpus) if self.capacity else self.most + 1

    def total(self, models: Collection[str]) -> int:
        """What they take together; 0: that is not known of all."""
        sizes = self.sizes
        return sum(sizes[model] for model in models) if all(model in sizes for model in models) else 0
