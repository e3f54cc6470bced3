"""A chain of lines in which each has the SHA-256 of the one before, so that a change or a cut shows.

It does not show that lines at the end are gone, or that the whole chain was written anew: for that, the last hash has
to be kept where whoever can write the file cannot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

FIRST = "0" * 64
"""What the first line has in place of a hash."""

PREVIOUS = "previous"

MAX_LINE = 64 * 1024
"""Bytes."""


@dataclass(frozen=True)
class Verdict:
    lines: int
    """Lines that were read, the broken one included."""
    last: str = FIRST
    """The hash of the last line of the whole part."""
    problem: str | None = None
    """What is wrong with the last line that was read; None: the chain is whole."""
    known: bool = False
    """Whether the hash that was asked for is that of a line."""


def hash_of(line: bytes) -> str:
    """The hash of a line without its end."""
    return hashlib.sha256(line).hexdigest()


def chained(entry: Mapping[str, object], previous: str) -> bytes:
    """The entry as a line that follows on from the one with that hash, without its end."""
    return json.dumps({**entry, PREVIOUS: previous}, separators=(",", ":")).encode()


def verify(lines: Iterable[bytes], known: str = "") -> Verdict:
    """Follow the chain; `lines` have their ends. `known` is a hash to look for."""
    number, previous, found = 0, FIRST, known == FIRST
    for number, line in enumerate(lines, 1):
        problem = _problem(line, previous, number)
        if problem is not None:
            return Verdict(number, previous, problem, found)
        previous = hash_of(line[:-1])
        found = found or previous == known
    return Verdict(number, previous, known=found)


def _problem(line: bytes, previous: str, number: int) -> str | None:
    if not line.endswith(b"\n"):
        return "it is too long, or its end is missing"
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return "it is not JSON"
    if not isinstance(entry, dict) or not isinstance(entry.get(PREVIOUS), str):
        return "it has no hash of the line before"
    if entry[PREVIOUS] != previous:
        if number == 1:
            return "it is not the first line: lines before it are missing"
        return "it does not follow on from the line before: that one was changed, or lines between them are missing"
    return None
