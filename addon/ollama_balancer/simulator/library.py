"""What a host stores: its models, which callers may change, and the blobs they have sent."""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from .models import ModelKey, SimulatedModel, model_key, requested_key


class Library:
    """The models by what identifies them, each with the time of its last change. Raises ValueError for equal names."""

    def __init__(self, models: Iterable[SimulatedModel]) -> None:
        self.by_key: dict[ModelKey, SimulatedModel] = {}
        self._modified: dict[ModelKey, int] = {}
        self.blobs: dict[str, int] = {}
        """The sizes in bytes of the blobs that were uploaded, by digest; what was in them is gone."""
        now = time.time_ns()
        for model in models:
            if model.key in self.by_key:
                raise ValueError("two models of the same name")
            self._put(model, now)

    def add(self, model: SimulatedModel) -> None:
        """Store a model, or another one under its name."""
        self._put(model, time.time_ns())

    def find(self, spelling: str) -> SimulatedModel | None:
        """The model that a caller means, if there is one."""
        key = requested_key(spelling)
        return self.by_key.get(key) if key is not None else None

    def remove(self, model: SimulatedModel) -> None:
        """Forget a model."""
        del self.by_key[model.key], self._modified[model.key]

    def modified(self, model: SimulatedModel) -> int:
        """When a model was last changed, in nanoseconds since the epoch."""
        return self._modified[model.key]

    def listed(self) -> list[tuple[SimulatedModel, int]]:
        """The models with the times of their last change, newest first as to the second."""
        listed = [(model, self._modified[key]) for key, model in self.by_key.items()]
        return sorted(listed, key=lambda entry: -(entry[1] // 1_000_000_000))

    def has_blob(self, digest: str) -> bool:
        """Whether a blob was uploaded or belongs to one of the models."""
        return digest in self.blobs or any(
            digest == layer for model in self.by_key.values() for layer, _ in model.layers()
        )

    def _put(self, model: SimulatedModel, now: int) -> None:
        self.by_key[model.key] = model
        self._modified[model.key] = now


@dataclass
class Registry:
    """Where a host pulls from: it has every model, by default one of 2 GB that makes text."""

    models: list[SimulatedModel] = field(default_factory=list)
    """What is pulled under these names."""
    unpullable: set[str] = field(default_factory=set)
    """Names, in any spelling, that can't be pulled."""

    def find(self, spelling: str) -> SimulatedModel | None:
        """What a pull of a model's name gets; None: nothing."""
        key = model_key(spelling)
        if key is None or key in map(model_key, self.unpullable):
            return None
        return next((model for model in self.models if model.key == key), SimulatedModel(spelling.strip()))


class Upload:
    """A blob on its way in: only its hash and its size are kept."""

    def __init__(self, *, present: bool, wanted: bool) -> None:
        self.present = present
        """The host has it already."""
        self.wanted = wanted
        """Whether it is read at all."""
        self.size = 0
        self._hash = hashlib.sha256()

    def feed(self, data: bytes) -> None:
        self.size += len(data)
        self._hash.update(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"
