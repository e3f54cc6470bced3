"""Lays out the lines of requests for a terminal: aligned, coloured, no wider than it."""

import textwrap

from ..gateway.request_lines import NOBODY, Cells, RequestLine

INDENT = " " * 10
"""As wide as the time and the gap after it."""

GAP = "  "
SPEED, FIRST, TOKENS = len("999 tok/s"), len("TTFT 12.3 s"), len("9999 tokens")
NOTES = len("loaded 3.1 s")
"""The width that is left to the notes; longer ones that do not fit go to the second line."""

NARROW = 100
"""Columns below which the figures stand closer together."""

MIN_BELOW, MAX_BELOW = 20, 10_000
"""The width of the second line."""

MAX_AGENT, MAX_MODEL = 24, 40
NARROW_AGENT = 10
MIN_AGENT, MIN_MODEL = 6, 8

RED, GREEN, MAGENTA = 31, 32, 35
BOLD, DIM = 1, 2
"""Of the terminal's own palette; those that can be read on light and dark alike."""

STATUS_CODES = {"2": (GREEN,), "3": (GREEN,), "4": (MAGENTA,), "5": (BOLD, RED), "e": (BOLD, RED)}


class Columns:
    """The widths of agent and model grow with what is shown, as far as the terminal allows."""

    def __init__(self) -> None:
        self._agent = MIN_AGENT
        self._model = MIN_MODEL

    def render(self, time: str, line: RequestLine, width: int | None, *, colour: bool) -> str:
        """`width` is the terminal's; None: no terminal, nothing is shortened."""
        cells = line.cells
        gap = GAP if width is None or width >= NARROW else " "
        figures = SPEED + FIRST + TOKENS + 2 * len(gap)
        agent, model = self._fit(cells, width, len(INDENT) + 4 * len(GAP) + len("200") + len(gap) + figures + NOTES)
        paint = painted if colour else plain
        parts = [
            paint(time, DIM),
            paint(shorten(cells.agent, agent).ljust(agent), BOLD),
            shorten(cells.model, model).ljust(model),
            paint(cells.status.rjust(3), *STATUS_CODES.get(cells.status[0], ())),
        ]
        taken = len(INDENT) + agent + model + 2 * len(GAP) + len("200") + len(gap)
        if cells.call:
            call = cells.call if width is None else shorten(cells.call, max(figures, width - taken))
            parts.append(call)
            taken += len(call)
        else:
            parts.append(gap.join((cells.speed.rjust(SPEED), cells.first.ljust(FIRST), cells.tokens.rjust(TOKENS))))
            taken += figures
        below = [cells.trouble] if cells.trouble else []
        head = GAP.join(parts[:4]) + gap + parts[4]
        if cells.notes and (width is None or taken + len(GAP) + len(cells.notes) <= width):
            head += GAP + paint(cells.notes, *([DIM] if cells.notes == "warm" else []))
        elif cells.notes:
            below.insert(0, cells.notes)
        rows = [head.rstrip()]
        room = MAX_BELOW if width is None else max(MIN_BELOW, width - len(INDENT))
        for text in textwrap.wrap("; ".join(below), room) if below else ():
            rows.append(INDENT + paint(text, *([RED] if line.is_trouble and cells.status[0] != "2" else [])))
        return "\n".join(rows)

    def _fit(self, cells: Cells, width: int | None, others: int) -> tuple[int, int]:
        """The widths of agent and model, beside which `others` are taken."""
        if cells.agent != NOBODY:  # what nobody has served may be called anything
            self._agent = min(max(self._agent, len(cells.agent)), MAX_AGENT)
            self._model = min(max(self._model, len(cells.model)), MAX_MODEL)
        if width is None:
            return max(self._agent, len(cells.agent)), max(self._model, len(cells.model))
        room = max(MIN_AGENT + MIN_MODEL, width - others)
        if self._agent + self._model <= room:
            return self._agent, self._model
        agent = min(self._agent, max(NARROW_AGENT if room > 2 * NARROW_AGENT else MIN_AGENT, room // 3))
        return agent, min(self._model, room - agent)


def shorten(text: str, width: int) -> str:
    """The beginning and the end: a model's tag, a host's number."""
    if len(text) <= width:
        return text
    end = (width - 1) // 3
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def painted(text: str, *codes: int) -> str:
    return f"\x1b[{';'.join(map(str, codes))}m{text}\x1b[0m" if codes and text.strip(NOBODY) else text


def plain(text: str, *codes: int) -> str:
    return text
