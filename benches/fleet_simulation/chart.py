"""Draws what the modes came to as an SVG picture: a panel for each number of models, a line for each mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Told apart by people who do not see all colours, too (Okabe and Ito, 2008)."""

WIDTH, HEIGHT = 260, 220
"""Of a panel's axes, in pixels."""

LEFT, TOP, GAP, BELOW = 56, 56, 36, 64
FONT = "font-family='system-ui, sans-serif' font-size='13' fill='#222'"


@dataclass(frozen=True)
class Point:
    """Percent: over the seeds, the lowest, the median, the highest."""

    low: float
    middle: float
    high: float


def svg(panels: Mapping[str, Mapping[str, Sequence[Point]]], loads: Sequence[float], title: str) -> str:
    """`panels` by title, of each the modes, of each a point for every load (parts of the capacity, ascending)."""
    modes = list(dict.fromkeys(mode for lines in panels.values() for mode in lines))
    width = LEFT + len(panels) * (WIDTH + GAP)
    height = TOP + HEIGHT + BELOW
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}'>",
        f"<title>{escape(title)}</title><rect width='100%' height='100%' fill='white'/>",
        f"<text x='{LEFT}' y='20' {FONT} font-weight='bold'>{escape(title)}</text>",
    ]
    for number, (name, lines) in enumerate(panels.items()):
        parts += _panel(LEFT + number * (WIDTH + GAP), name, lines, loads, modes, figures=number == 0)
    parts += _legend(modes, height - 14)
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    x: float,
    name: str,
    lines: Mapping[str, Sequence[Point]],
    loads: Sequence[float],
    modes: list[str],
    *,
    figures: bool,
) -> list[str]:
    def across(number: int, mode: int) -> float:
        # Beside each other, so that lines which lie on each other can be seen.
        step = WIDTH / max(1, len(loads))
        return x + step * (number + 0.5) + (mode - (len(modes) - 1) / 2) * 7

    def up(percent: float) -> float:
        return TOP + HEIGHT * (1 - percent / 100)

    parts = [f"<text x='{x + WIDTH / 2}' y='{TOP - 12}' {FONT} text-anchor='middle'>{escape(name)}</text>"]
    for percent in range(0, 101, 25):
        y = up(percent)
        parts.append(f"<line x1='{x}' x2='{x + WIDTH}' y1='{y}' y2='{y}' stroke='#ddd'/>")
        if figures:
            parts.append(f"<text x='{x - 8}' y='{y + 4}' {FONT} text-anchor='end'>{percent} %</text>")
    for number, load in enumerate(loads):
        middle = across(number, 0) + (len(modes) - 1) / 2 * 7
        parts.append(f"<text x='{middle}' y='{TOP + HEIGHT + 20}' {FONT} text-anchor='middle'>{load:.0%}</text>")
    for mode, points in lines.items():
        colour = COLOURS[modes.index(mode) % len(COLOURS)]
        places = [(across(n, modes.index(mode)), point) for n, point in enumerate(points)]
        corners = " ".join(f"{at:.1f},{up(point.middle):.1f}" for at, point in places)
        parts.append(f"<polyline points='{corners}' fill='none' stroke='{colour}' stroke-width='2'/>")
        for at, point in places:
            parts.append(
                f"<line x1='{at:.1f}' x2='{at:.1f}' y1='{up(point.low):.1f}' y2='{up(point.high):.1f}' "
                f"stroke='{colour}' stroke-width='1.5'/>"
                f"<circle cx='{at:.1f}' cy='{up(point.middle):.1f}' r='3.5' fill='{colour}'/>"
            )
    return parts


def _legend(modes: Sequence[str], y: float) -> list[str]:
    parts = []
    for number, mode in enumerate(modes):
        x, colour = LEFT + number * 150, COLOURS[number % len(COLOURS)]
        parts.append(f"<circle cx='{x}' cy='{y - 4}' r='5' fill='{colour}'/>")
        parts.append(f"<text x='{x + 12}' y='{y}' {FONT}>{escape(mode)}</text>")
    return parts
