"""Two texts of people's language, one against the other: by sentences, and by words where those are alike."""

import difflib
import re
from collections.abc import Iterator, Sequence

from ...text import one_line

MAX_SENTENCES = 150
"""Of each text that are compared, from the first difference on. difflib takes time by the cube, at the worst."""

MAX_WORDS = 50
"""Of a sentence that is compared by words."""

MAX_BY_WORDS = 20
"""Sentences that are compared by words."""

ALIKE = 0.5
"""How many of the words of two sentences have to be the same, for these to be compared by words."""

CONTEXT = 2
"""Equal sentences that are shown beside a difference."""

LEGEND = "- only there   + only here   ~ with [-words only there-] and {+words only here+}"

_SENTENCE = re.compile(r"[^\n]+?[.!?](?=\s)|[^\n]+")
_WORD = re.compile(r"\s*\S+")


def sentences(text: str) -> list[str]:
    """The sentences of a text, or its lines where it has none."""
    return [found for match in _SENTENCE.finditer(text) if (found := match[0].strip())]


def diff_lines(there: str, here: str) -> Iterator[str]:
    """A line for each sentence, which begins with a mark of LEGEND, or a blank where both texts have it."""
    before, after = sentences(there), sentences(here)
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    begin = max(0, same - CONTEXT)
    if begin:
        yield _equal(begin)
    cut = [part[begin : begin + MAX_SENTENCES] for part in (before, after)]
    yield from _compared(*cut)
    left = [max(0, len(part) - begin - MAX_SENTENCES) for part in (before, after)]
    if any(left):
        yield f"  … ({left[0]} more there and {left[1]} more here are not compared)"


def _compared(before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    by_words = 0
    codes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    for position, (kind, i1, i2, j1, j2) in enumerate(codes):
        if kind == "equal":
            yield from _context(before[i1:i2], first=position == 0, last=position == len(codes) - 1)
            continue
        pairs = i2 - i1 if i2 - i1 == j2 - j1 <= MAX_BY_WORDS - by_words else 0
        by_words += pairs
        for one, other in zip(before[i1 : i1 + pairs], after[j1 : j1 + pairs], strict=True):
            merged = _merged(one, other)
            yield from (f"~ {merged}",) if merged is not None else (f"- {one}", f"+ {other}")
        yield from (f"- {each}" for each in before[i1 + pairs : i2])
        yield from (f"+ {each}" for each in after[j1 + pairs : j2])


def _context(equal: Sequence[str], *, first: bool, last: bool) -> Iterator[str]:
    """Those of equal sentences that stand beside a difference."""
    head = 0 if first else CONTEXT
    tail = 0 if last else CONTEXT
    hidden = len(equal) - head - tail
    if hidden <= 1:
        yield from (f"  {each}" for each in equal)
        return
    yield from (f"  {each}" for each in equal[:head])
    yield _equal(hidden)
    yield from (f"  {each}" for each in equal[len(equal) - tail :])


def _equal(count: int) -> str:
    return f"  … ({count} equal sentence{'s' * (count != 1)})"


def _merged(there: str, here: str) -> str | None:
    """Both sentences in one; None if they have too little in common."""
    before, after = _WORD.findall(there), _WORD.findall(here)
    if max(len(before), len(after)) > MAX_WORDS:
        return None
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    if matcher.ratio() < ALIKE:
        return None
    parts = []
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        if kind == "equal":
            parts.append("".join(before[i1:i2]))
            continue
        removed, added = "".join(before[i1:i2]), "".join(after[j1:j2])
        words = f"[-{removed.strip()}-]" if removed else ""
        words += f"{{+{added.strip()}+}}" if added else ""
        parts.append(f"{' ' if (removed or added)[0].isspace() else ''}{words}")
    return one_line("".join(parts), 10_000)
