"""How a body is stored of which the middle was not kept."""

from __future__ import annotations

import re

_GAP = re.compile(rb"\n\[\.\.\. (\d{1,20}) bytes are not kept \.\.\.\]\n")


def gap(left_out: int) -> str:
    return f"[... {left_out} bytes are not kept ...]"


def truncated(head: bytes, tail: bytes, left_out: int) -> bytes:
    """The body to be stored; it says in a line of its own what is missing."""
    return b"%b\n%b\n%b" % (head, gap(left_out).encode(), tail) if left_out else head + tail


def split_gap(body: bytes) -> tuple[bytes, int, bytes] | None:
    """Its beginning, how many bytes are missing after it, and its end; None where nothing is."""
    found = _GAP.search(body)
    return None if found is None else (body[: found.start()], int(found[1]), body[found.end() :])
