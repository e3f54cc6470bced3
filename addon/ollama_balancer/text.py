"""Text from outside, made fit for a log line, a comment or an error."""

from __future__ import annotations


def one_line(text: str, limit: int = 200) -> str:
    """No control characters, no lone surrogates, not long."""
    if len(text) <= limit and text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else " " for c in text[:limit])
    return shown + "…" if len(text) > limit else shown
