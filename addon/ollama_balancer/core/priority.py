"""Priority classes: who is served first while requests wait."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """The lower the number, the sooner it is served."""

    INTERACTIVE = 0
    """A person watches the answer appear."""
    NORMAL = 1
    BATCH = 2
    """Nobody waits for it."""

    @property
    def label(self) -> str:
        """Its name in requests, answers and on pages."""
        return _LABELS[self]

    @classmethod
    def parse(cls, text: str) -> Priority:
        """The class with that label. ValueError: there is none; the message says which there are."""
        try:
            return _BY_LABEL[text.strip().lower()]
        except KeyError:
            raise ValueError(f"{text[:40]!r} is no priority; accepted are {', '.join(_LABELS)}") from None


_LABELS = tuple(priority.name.lower() for priority in Priority)
_BY_LABEL = dict(zip(_LABELS, Priority, strict=True))

HANDICAPS = (0.0, 30.0, 120.0)
"""Seconds by class that its requests count as younger than they are.

No request of a higher class that arrives later than this (less its own handicap) is served before an older one. 30 s:
half of the 60 s after which many clients time out. 120 s: far enough from the 300 s that a request may wait by default
for a batch to be served rather than refused.
"""
