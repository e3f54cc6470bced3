"""Suggests existing model names that are similar to a misspelt one."""

import heapq
from collections.abc import Iterable
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import islice

from .names import canonical_name

MAX_COMPARED = 1_000
"""Names that are looked at, so that a misspelt name costs a few milliseconds, however many models there are."""

LONGEST = 100
"""Characters of a name that is compared. A typing mistake is not made in longer ones."""

MAX_NEAR = 3

_CANDIDATES = 12
"""Names that share most pairs of characters: they are compared character by character."""

_MIN_LIKENESS = 0.65
"""Of the names without their tags, from 0 to 1, as difflib measures it (its own default is 0.6)."""


def nearest_names(model: str, names: Iterable[str]) -> list[str]:
    """Up to three of these canonical names, the nearest first, as one would type them. None if none comes near."""
    wanted = canonical_name(model)
    if len(wanted) > LONGEST:
        return []
    pairs = _pairs(wanted)
    shared = [(len(pairs & (its := _pairs(name))) / len(its), name) for name in islice(names, MAX_COMPARED)]
    likely = [name for _, name in heapq.nlargest(_CANDIDATES, shared) if len(name) <= LONGEST and name.isprintable()]
    scored = sorted(((_likeness(wanted, name), name) for name in likely), key=lambda each: (-each[0][0], -each[0][1]))
    return [name.removesuffix(":latest") for (base, _), name in scored if base >= _MIN_LIKENESS][:MAX_NEAR]


def did_you_mean(model: str, names: Iterable[str]) -> str:
    """What to put behind the words that a model is not found; empty if no name comes near."""
    near = [f"'{name}'" for name in nearest_names(model, names)]
    if not near:
        return ""
    return f", did you mean {' or '.join(filter(None, (', '.join(near[:-1]), near[-1])))}?"


def _likeness(wanted: str, name: str) -> tuple[float, float]:
    """Of the names without their tags, and of the tags."""
    base, _, tag = wanted.rpartition(":")
    other, _, other_tag = name.rpartition(":")
    likeness = max(
        SequenceMatcher(None, one, another).ratio()
        for one, another in {(base, other), (base.rsplit("/", 1)[-1], other.rsplit("/", 1)[-1])}
    )
    return likeness, SequenceMatcher(None, tag, other_tag).ratio()


@lru_cache(maxsize=2 * MAX_COMPARED)
def _pairs(name: str) -> frozenset[str]:
    """The pairs of characters in the name without its tag, its beginning and its end."""
    text = f"^{name.rpartition(':')[0][:LONGEST]}$"
    return frozenset(map(str.__add__, text, text[1:]))
