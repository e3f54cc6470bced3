"""Models that a host serves without a load, though its list of loaded models (GET /api/ps) does not have them.

Ollama passes requests of models in its cloud on, and loads nothing. Models with the same files share one process, which
is listed under the name that it was loaded by (`schedulerModelKey` in its server/sched.go): other tags of a model, its
copies, and those made of it with another system prompt. Other servers may have a list that is always empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_reporter.wire import ModelEntry

MAX_PROVEN = 1000
"""Models that are remembered to have answered without a load."""


@dataclass(eq=False, slots=True)
class Unlisted:
    """Models have canonical names."""

    remote: frozenset[str] = frozenset()
    """Those in Ollama's cloud."""
    copies: dict[str, str] = field(default_factory=dict)
    """Those with the digest of a listed one: of which."""
    proven: set[str] = field(default_factory=set)
    """Those that have answered without a load when one was expected."""

    def update(self, models: Mapping[str, ModelEntry], listed: Mapping[str, ModelEntry]) -> None:
        """The host has these models, and lists some of them as loaded."""
        self.remote = frozenset(model for model, entry in models.items() if _detail(entry, "remote_host"))
        originals = {digest: model for model, entry in listed.items() if (digest := _detail(entry, "digest"))}
        self.copies = {
            model: originals[digest]
            for model, entry in (models.items() if originals else ())
            if (digest := _detail(entry, "digest")) in originals and model not in listed
        }
        self.proven.difference_update(listed)

    def answered(self, model: str, *, loaded: bool, missed: bool) -> None:
        """An answer says whether its model was loaded for it. `missed`: it was expected to be, and a list from after
        the first byte does not have it.
        """
        if loaded:
            self.proven.discard(model)
        elif missed and len(self.proven) < MAX_PROVEN:
            self.proven.add(model)

    def copies_of(self, model: str) -> list[str]:
        """The other names by which requests are served that have this one listed."""
        return [copy for copy, original in self.copies.items() if original == model]

    def serves(self, model: str, runner: str) -> bool:
        """Whether the host serves the model with those runner options at once, though it does not list it."""
        return model in self.remote or (not runner and (model in self.copies or model in self.proven))


def _detail(entry: ModelEntry, field: str) -> str | None:
    value = (entry.model_extra or {}).get(field)
    return value if isinstance(value, str) and value else None
