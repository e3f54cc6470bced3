"""Text for log lines, comments and errors; sanitizes what comes from outside."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime


def one_line(text: str, limit: int = 200) -> str:
    """No control characters, no lone surrogates, not long."""
    if len(text) <= limit and text.isprintable():
        return text
    printable = "".join(c if c.isprintable() else " " for c in text[:limit])
    return printable + "…" if len(text) > limit else printable


def printable(text: str) -> str:
    """Several lines without control characters but their ends."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def first_names(names: Sequence[str], most: int) -> list[str]:
    """The first names; then how many more there are."""
    more = len(names) - most
    return [*names[:most], f"and {more} more"] if more > 0 else list(names)


_LITERAL = re.compile(r"""[\s:(\[]*(?:\b(?:bytearray\()?b['"]|(?<=: )['"]).*""", re.DOTALL)


def without_bytes(text: str) -> str:
    """What an error says, without its quotation of the bytes that it is about."""
    return _LITERAL.sub("", text)


def rfc3339(seconds: float) -> str:
    """A time in seconds since 1970, in UTC and to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
