"""The report of the lab as JSON and text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .caveats import Settings, caveats, counted
from .rates import LearnedFleet
from .recording import Recording
from .simulation import IN_TIME, Result

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Report:
    """`results` are by mode; `asked` is how many requests each mode was given."""

    recording: Recording
    fleet: LearnedFleet
    settings: Settings
    recorded: Result
    results: Mapping[str, Result]
    asked: int

    def as_json(self) -> dict[str, Any]:
        """All of it, JSON-serialisable. Times are seconds, shares and goodput percent."""
        recording, fleet = self.recording, self.fleet
        begin, end = recording.requests[0].at, recording.requests[-1].at
        return {
            "read": {
                "flows": recording.flows,
                "requests": len(recording.requests),
                "from": _when(begin),
                "to": _when(end),
                "clients": len({request.client for request in recording.requests}),
                "conversations": len({request.conversation for request in recording.requests}),
                "modes": dict(recording.modes),
                "refused": recording.refused,
                "odd": recording.odd,
                "problems": recording.problems,
            },
            "settings": vars(self.settings),
            "learned": {
                "decode": fleet.decode,
                "prefill": fleet.prefill,
                "loads": fleet.loads,
                "pairs": fleet.pairs,
                "guessed": fleet.guessed,
            },
            "hosts": [
                {
                    "name": host.name,
                    "slots": host.parallel,
                    "fits": host.fits,
                    "keep": host.keep,
                    "loaded": list(host.loaded),
                    "models": {name: _rounded(vars(rates)) for name, rates in (host.rates or {}).items()},
                }
                for host in fleet.hosts
            ],
            "recorded": figures(self.recorded, self.recorded.asked),
            "modes": {mode: figures(result, self.asked) for mode, result in self.results.items()},
            "notes": self.caveats(),
        }

    def caveats(self) -> list[str]:
        return caveats(self.recording, self.fleet, self.recorded, self.settings)

    def as_text(self) -> str:
        recording, fleet, settings = self.recording, self.fleet, self.settings
        begin, end = recording.requests[0].at, recording.requests[-1].at
        modes = ", ".join(mode for mode, _ in recording.modes.most_common())
        counts = [
            counted(len(recording.requests), "request"),
            counted(len({request.client for request in recording.requests}), "client"),
            counted(len(fleet.hosts), "host"),
            counted(len({request.model for request in recording.requests}), "model"),
        ]
        lines = [
            f"Read {counted(recording.flows, 'flow')}: {', '.join(counts)}, from {_when(begin)} to {_when(end)} "
            f"({_span(end - begin)}), recorded in mode {modes}.",
            f"Rates rest on {counted(fleet.decode, 'answer')} for decoding, {fleet.prefill:,} for prefill and "
            f"{fleet.loads:,} for loads.",
            f"Simulated{f' with {settings.load:g} times as many requests per second' if settings.load != 1 else ''}: "
            f"seed {settings.seed}, clients wait {settings.patience:g} s for the first token, which is on time within "
            f"{IN_TIME:g} s. Times are seconds.",
            "",
            *_table(_HEAD, [_row(f"recorded ({modes})", figures(self.recorded, self.recorded.asked))]
            + [_row(mode, figures(result, self.asked)) for mode, result in self.results.items()]),
            "",
            "Share of the requests by host:",
            "",
            *_table(["host", "slots", "fits", "recorded", *self.results], self._shares()),
            "",
            *(f"- {caveat}" for caveat in self.caveats()),
        ]  # fmt: skip
        return "\n".join(lines)

    def _shares(self) -> list[list[str]]:
        columns = [shares(self.recorded), *(shares(result) for result in self.results.values())]
        return [
            [
                host.name,
                _at_least(host.parallel, self.settings.slots or host.name in self.recording.slots),
                _at_least(host.fits, self.settings.fits or host.name in self.recording.fits),
                *(f"{column.get(host.name, 0.0):.1f} %" for column in columns),
            ]
            for host in self.fleet.hosts
        ]


def figures(result: Result, asked: int) -> dict[str, Any]:
    """What is said of one run in which `asked` requests came."""
    return {
        "requests": asked,
        "served": result.outcomes["served"],
        "outcomes": dict(result.outcomes) | ({"unfinished": asked - result.asked} if asked > result.asked else {}),
        "goodput": round(100 * result.good / asked, 2) if asked else None,
        "first_token": percentiles(result.first),
        "total": percentiles(result.total),
        "loads": result.loads,
        "shares": _rounded(shares(result)),
    }


def percentiles(values: Iterable[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        name: round(ordered[min(last, int(part * len(ordered)))], 3) if ordered else None
        for name, part in PERCENTILES.items()
    }


def shares(result: Result) -> dict[str, float]:
    """Percent of the requests that were sent to a host, by host."""
    whole = sum(result.agents.values())
    return {name: 100 * count / whole for name, count in sorted(result.agents.items())}


_HEAD = ["", "served", "goodput", "TTFT p50", "p95", "p99", "total p50", "p95", "p99", "loads"]


def _row(name: str, figures_row: Mapping[str, Any]) -> list[str]:
    return [
        name,
        f"{figures_row['served']} of {figures_row['requests']}",
        "–" if figures_row["goodput"] is None else f"{figures_row['goodput']:.1f} %",
        *(_seconds(value) for value in (*figures_row["first_token"].values(), *figures_row["total"].values())),
        str(figures_row["loads"]),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of text: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = cells
        return "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))])

    return [line(head), *(line(row) for row in rows)]


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _at_least(number: int, known: object) -> str:
    return str(number) if known else f"≥ {number}"


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 3) if math.isfinite(value) else value for key, value in values.items()}


def _when(at: float) -> str:
    """UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
