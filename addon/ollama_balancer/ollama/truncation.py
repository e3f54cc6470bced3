"""The stored form of a body whose middle was dropped."""

import re

_GAP = re.compile(rb"\n\[\.\.\. (\d{1,20}) bytes are not kept \.\.\.\]\n")


def gap(left_out: int) -> str:
    return f"[... {left_out} bytes are not kept ...]"


def truncated(head: bytes, tail: bytes, left_out: int) -> bytes:
    """The body as stored; a line of its own says what is missing."""
    return b"%b\n%b\n%b" % (head, gap(left_out).encode(), tail) if left_out else head + tail


def split_gap(body: bytes) -> tuple[bytes, int, bytes] | None:
    """Its start, the number of missing bytes, and its end; None if nothing is missing."""
    found = _GAP.search(body)
    return None if found is None else (body[: found.start()], int(found[1]), body[found.end() :])
