"""Interned model entries: the hosts of a fleet mostly have the same models, whose details are kept once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_reporter.wire import ModelEntry


MOST = 4_096
"""Entries that others are compared with; hosts may name as many models as they like."""


class ModelInterner:
    """Lets equal entries share their values."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, int], ModelEntry] = {}
        """By name, digest and number of fields: lists of what is in memory tell more."""

    def intern(self, entry: ModelEntry) -> None:
        more = entry.__pydantic_extra__
        digest = more.get("digest") if more else None
        if more is None or not isinstance(digest, str):
            return
        key = entry.name, digest, len(more)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[key] = entry
            return
        entry.__dict__["name"] = known.name
        for field, value in (known.__pydantic_extra__ or {}).items():
            if field in more and type(more[field]) is type(value) and more[field] == value:
                more[field] = value
        if entry.__pydantic_fields_set__ == known.__pydantic_fields_set__:
            object.__setattr__(entry, "__pydantic_fields_set__", known.__pydantic_fields_set__)
