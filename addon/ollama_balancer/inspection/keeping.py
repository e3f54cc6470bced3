"""How a body is stored of which the middle was not kept."""

from __future__ import annotations


def shortened(head: bytes, tail: bytes, left_out: int) -> bytes:
    """The body to be stored; it says in a line of its own what is missing."""
    return b"%b\n[... %d bytes are not kept ...]\n%b" % (head, left_out, tail) if left_out else head + tail
