"""The models of a simulated host and how callers may spell their names."""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

NAME_PART = re.compile(r"[a-z0-9_][a-z0-9_.\-:]*")

ModelKey = tuple[str, str, str, str]


@dataclass(frozen=True)
class SimulatedModel:
    """A model the host has. `size` is in bytes; an `embedding` model embeds and does nothing else."""

    name: str = "llama3.2"
    size: int = 2_000_000_000
    family: str = "llama"
    embedding: bool = False

    @property
    def key(self) -> ModelKey:
        """What identifies it, however it is spelt. Raises ValueError for a name that is none."""
        key = model_key(self.name)
        if key is None:
            raise ValueError(f"not a model name: {self.name!r}")
        return key

    @property
    def full_name(self) -> str:
        """Its name as the server lists it: with a tag."""
        name = self.name.strip()
        return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"

    @property
    def digest(self) -> str:
        """A SHA-256 as hex digits, the same on every host that has the model."""
        return hashlib.sha256(repr(self.key).encode()).hexdigest()


@lru_cache(maxsize=4096)
def model_key(spelling: str) -> ModelKey | None:
    """The host, namespace, model and tag that `spelling` names, in lower case; None if it is no model's name."""
    parts = spelling.strip().lower().split("/")
    model, _, tag = parts[-1].partition(":")
    match parts[:-1]:
        case []:
            host, namespace = "registry.ollama.ai", "library"
        case [namespace]:
            host = "registry.ollama.ai"
        case [host, namespace]:
            pass
        case _:
            return None
    key = (host, namespace, model, tag or "latest")
    return key if all(NAME_PART.fullmatch(part) for part in key) else None


def with_tag(spelling: str) -> str:
    """The spelling as the server's errors quote it where they add the tag."""
    return spelling if ":" in spelling.rsplit("/", 1)[-1] else f"{spelling}:latest"
