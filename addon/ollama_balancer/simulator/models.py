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
    tool: bool = False
    """It answers each request that offers tools with a call of the first of them."""
    supports_tools: bool = True
    """It is refused a request that offers tools otherwise."""
    content: str = ""
    """What its digest comes from: models of the same content have the same one. Empty: its name."""

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
        return hashlib.sha256(self.made_of.encode()).hexdigest()

    @property
    def made_of(self) -> str:
        """Its content, or what stands for it."""
        return self.content or repr(self.key)

    @property
    def capabilities(self) -> list[str]:
        """What it can do, as /api/tags and /api/show list it."""
        if self.embedding:
            return ["embedding"]
        return ["completion", "tools"] if self.supports_tools else ["completion"]

    def layers(self) -> list[tuple[str, int]]:
        """The blobs it consists of, weights first: each a digest and its size in bytes, together the model's size."""
        rest = min(self.size, 512)
        sizes = {"weights": self.size - rest, "template": rest - rest // 4, "parameters": rest // 4}
        return [(blob_digest(f"{self.made_of} {part}"), size) for part, size in sizes.items()]


def blob_digest(content: str) -> str:
    """A blob's name: that of its SHA-256."""
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


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


def requested_key(spelling: str) -> ModelKey | None:
    """The same of what a caller asks for: `:local` behind a name says that it is not the model of Ollama's cloud."""
    base, _, source = spelling.rpartition(":")
    return model_key(base if source.strip().lower() == "local" else spelling)


def with_tag(spelling: str) -> str:
    """The spelling as the server's errors quote it where they add the tag."""
    return spelling if ":" in spelling.rsplit("/", 1)[-1] else f"{spelling}:latest"
