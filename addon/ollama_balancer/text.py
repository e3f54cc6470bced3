"""Sanitizes text from outside for log lines, comments and errors."""

import re
from collections.abc import Sequence


def one_line(text: str, limit: int = 200) -> str:
    """No control characters, no lone surrogates, not long."""
    if len(text) <= limit and text.isprintable():
        return text
    printable = "".join(c if c.isprintable() else " " for c in text[:limit])
    return printable + "…" if len(text) > limit else printable


def first_names(names: Sequence[str], most: int) -> list[str]:
    """The first names; then how many more there are."""
    more = len(names) - most
    return [*names[:most], f"and {more} more"] if more > 0 else list(names)


_LITERAL = re.compile(r"""[\s:(\[]*(?:\b(?:bytearray\()?b['"]|(?<=: )['"]).*""", re.DOTALL)


def without_bytes(text: str) -> str:
    """What an error says, without its quotation of the bytes that it is about."""
    return _LITERAL.sub("", text)
