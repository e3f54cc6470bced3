"""Model names as the Ollama server matches them."""

from functools import lru_cache

_PREFIXES = ("https://", "http://", "registry.ollama.ai/", "library/")


@lru_cache(maxsize=8192)
def canonical_name(name: str) -> str:
    """The one spelling of a model's name: `Llama3.2`, `library/llama3.2:latest` and so on are all `llama3.2:latest`.

    Case does not count, the default registry and namespace may be left out, and so may the tag `latest`.
    """
    name = name.strip().lower()
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if ":" not in name.rsplit("/", 1)[-1]:
        name += ":latest"
    return name


def local_name(name: str) -> str | None:
    """The canonical name that is meant where a request puts `:local` behind it; None where it does not.

    By that a request says that it wants the host's own model, and not the one of that name in Ollama's cloud.
    """
    base, _, source = name.rpartition(":")
    return canonical_name(base) if base and source.strip().lower() == "local" else None


def is_cloud_model(name: str) -> bool:
    """Whether a host can serve the model without having it, from Ollama's cloud: `gpt-oss:120b-cloud`."""
    tag = canonical_name(name).rpartition(":")[2]
    return tag == "cloud" or tag.endswith("-cloud")
