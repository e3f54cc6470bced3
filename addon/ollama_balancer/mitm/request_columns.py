"""Lays out the lines of requests for a terminal: aligned, coloured, no wider than it."""

import textwrap

from ..gateway.request_lines import NOBODY, Cells, RequestLine

INDENT = " " * 10
"""As wide as the time and the gap after it."""

GAP = "  "
SPEED, FIRST, TOKENS = len("999 tok/s"), len("TTFT 12.3 s"), len("9999 tokens")
FIGURES = SPEED + len(GAP) + FIRST + len(GAP) + TOKENS
WITHOUT_NAMES = len(INDENT) + 2 * len(GAP) + len("200") + len(GAP) + FIGURES + len(GAP)
"""The width of a line without agent, model and notes."""

MAX_AGENT, MAX_MODEL = 24, 40
NARROW_AGENT = 10
MIN_AGENT, MIN_MODEL = 6, 10
NOTES = len("warm")
"""The width that is left to the notes; longer ones that do not fit go to the second line."""

RED, GREEN, YELLOW = 31, 32, 33
BOLD, DIM = 1, 2
"""Of the terminal's own palette, which suits its background."""

STATUS_CODES = {"2": (GREEN,), "3": (GREEN,), "4": (YELLOW,), "5": (BOLD, RED), "e": (BOLD, RED)}


class Columns:
    """The widths of agent and model grow with what is shown, as far as the terminal allows."""

    def __init__(self) -> None:
        self._agent = MIN_AGENT
        self._model = MIN_MODEL

    def render(self, time: str, line: RequestLine, width: int | None, *, colour: bool) -> str:
        """`width` is the terminal's; None: no terminal, nothing is shortened."""
        cells = line.cells
        agent, model = self._fit(cells, width)
        paint = painted if colour else plain
        parts = [
            paint(time, DIM),
            paint(shorten(cells.agent, agent).ljust(agent), BOLD),
            shorten(cells.model, model).ljust(model),
            paint(cells.status.rjust(3), *STATUS_CODES.get(cells.status[0], ())),
        ]
        taken = len(INDENT) + agent + model + 2 * len(GAP) + 3
        if cells.call:
            room = FIGURES if width is None else max(FIGURES, width - taken - len(GAP))
            parts.append(cells.call if width is None else shorten(cells.call, room))
            taken += len(GAP) + len(parts[-1])
        else:
            parts += [cells.speed.rjust(SPEED), cells.first.ljust(FIRST), cells.tokens.rjust(TOKENS)]
            taken += len(GAP) + FIGURES
        below = [cells.trouble] if cells.trouble else []
        if cells.notes and (width is None or taken + len(GAP) + len(cells.notes) <= width):
            parts.append(paint(cells.notes, *([DIM] if cells.notes == "warm" else [])))
        elif cells.notes:
            below.insert(0, cells.notes)
        rows = [GAP.join(parts).rstrip()]
        for text in textwrap.wrap("; ".join(below), (width or 10_000) - len(INDENT)):
            rows.append(INDENT + paint(text, *([RED] if line.is_trouble and cells.status[0] != "2" else [])))
        return "\n".join(rows)

    def _fit(self, cells: Cells, width: int | None) -> tuple[int, int]:
        """The widths of agent and model."""
        if cells.agent != NOBODY:  # what nobody has served may be called anything
            self._agent = min(max(self._agent, len(cells.agent)), MAX_AGENT)
            self._model = min(max(self._model, len(cells.model)), MAX_MODEL)
        if width is None:
            return max(self._agent, len(cells.agent)), max(self._model, len(cells.model))
        room = max(MIN_AGENT + MIN_MODEL, width - WITHOUT_NAMES - NOTES)
        if self._agent + self._model <= room:
            return self._agent, self._model
        agent = min(self._agent, max(NARROW_AGENT, room // 3))
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
