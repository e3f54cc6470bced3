"""Sanitizes text from outside for log lines, comments and errors."""

from __future__ import annotations

import re


def one_line(text: str, limit: int = 200) -> str:
    """No control characters, no lone surrogates, not long."""
    if len(text) <= limit and text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else " " for c in text[:limit])
    return shown + "…" if len(text) > limit else shown


_LITERAL = re.compile(r"""[\s:(\[]*(?:\b(?:bytearray\()?b['"]|(?<=: )['"]).*""", re.DOTALL)


def without_bytes(text: str) -> str:
    """What an error says, without its quotation of the bytes that it is about."""
    return _LITERAL.sub("", text)
