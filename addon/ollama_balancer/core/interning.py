"""Entries of models without what they have in common: the hosts of a fleet mostly have the same models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_reporter.wire import ModelEntry


MOST = 4_096
"""Entries that are kept to compare others with; hosts may name as many models as they like."""


class SharedParts:
    """Makes entries that hold the very values of an earlier one with that name and digest, where these are equal.

    An entry as `/api/tags` gives it takes 2.8 kB alone and 0.6 kB with what another holds.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, int], ModelEntry] = {}
        """By name, digest and number of fields: lists of what is in memory tell more."""

    def share(self, entry: ModelEntry) -> ModelEntry:
        """The entry, or an equal one that holds what is known already."""
        fields = entry.model_extra or {}
        digest = fields.get("digest")
        if not isinstance(digest, str):
            return entry
        key = entry.name, digest, len(fields)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[key] = entry
            return entry
        shared = {
            field: each
            if type(each := (known.model_extra or {}).get(field)) is type(value) and each == value
            else value
            for field, value in fields.items()
        }
        same_fields = known.model_fields_set == entry.model_fields_set
        equal = entry.model_construct((known if same_fields else entry).model_fields_set, name=known.name)
        if equal.model_extra is None:
            return entry
        equal.model_extra.update(shared)  # as arguments, names of fields could be those of other arguments
        return equal
