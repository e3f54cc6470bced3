"""Tables for terminals: the fleet, the queue, answers side by side. Rows of strings, a header first."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .core.agent import Agent
from .text import one_line

type Table = list[list[str]]

CONTEXT = 24
"""Characters shown of two texts from where they differ."""

NONE = "-"


def fleet_table(agents: Iterable[Agent], now: float) -> Table:
    """A row an agent; `now` is the registry's clock."""
    head = ["agent", "status", "url", "in flight", "loaded", "cpu", "memory", "score", "tok/s", "requests", "report"]
    rows = []
    for agent in agents:
        metrics, stats = agent.metrics, agent.stats
        slots = f"/{agent.slots}" if agent.slots else ""
        rows.append(
            [
                agent.name,
                agent.status + (f" ({agent.reason})" if agent.reason else ""),
                agent.address.url,
                f"{agent.in_flight}{slots}",
                ", ".join(model.name for model in agent.loaded) or NONE,
                f"{metrics.cpu_usage:.0f} %" if metrics else NONE,
                f"{metrics.memory_usage:.0f} %" if metrics else NONE,
                NONE if agent.score is None else f"{agent.score:.1f}",
                ", ".join(f"{model} {speed:.0f}" for model, speed in stats.speeds.items()) or NONE,
                str(stats.ended + agent.in_flight),
                f"{now - agent.metrics_at:.0f} s ago" if metrics else NONE,
            ]
        )
    return [head, *([one_line(cell, 80) for cell in row] for row in rows)]


def queue_table(queue: Mapping[str, Any]) -> Table:
    """How many requests wait, by model and by client; `queue` is from `RequestQueue.describe`."""
    rows = [["all", str(queue["length"])]]
    if queue["oldest"] is not None:
        rows.append(["longest wait", f"{queue['oldest']:.1f} s"])
    rows += [[label, str(count)] for label, count in queue["priorities"].items() if label != "normal" and count]
    rows += [[f"model {one_line(model, 80)}", str(count)] for model, count in queue["models"].items()]
    rows += [[f"client {one_line(client, 80)}", str(count)] for client, count in queue["clients"].items()]
    return [["waiting", "requests"], *rows]


@dataclass(frozen=True)
class Run:
    """One request as it went on one agent. Milliseconds; None is unknown."""

    group: str
    agent: str
    model: str
    first_byte: float | None
    total: float | None
    tokens_per_second: float | None
    tokens: int | None
    text: str
    problem: str | None = None


def comparison_table(runs: Sequence[Run]) -> Table:
    """A row a run, those of one comparison beside each other, each text against the first whole one of its group."""
    head = ["comparison", "agent", "model", "TTFT", "tok/s", "tokens", "total", "text"]
    first: dict[str, str] = {}
    for run in runs:
        if run.problem is None:
            first.setdefault(run.group, run.text)
    rows, seen = [], set()
    for run in sorted(runs, key=lambda run: list(first).index(run.group) if run.group in first else len(first)):
        if run.problem is not None:
            outcome = run.problem
        elif run.group in seen:
            outcome = difference(first[run.group], run.text)
        else:
            seen.add(run.group)
            outcome = f"{len(run.text)} characters"
        rows.append(
            [
                run.group or NONE,
                run.agent,
                run.model,
                _milliseconds(run.first_byte),
                NONE if run.tokens_per_second is None else f"{run.tokens_per_second:.1f}",
                NONE if run.tokens is None else str(run.tokens),
                _milliseconds(run.total),
                outcome,
            ]
        )
    return [head, *([one_line(cell, 160) for cell in row] for row in rows)]


def difference(one: str, other: str) -> str:
    """Whether two texts are the same, or where they differ first."""
    if one == other:
        return "same text"
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"differs at character {at + 1}: {_piece(one, at)} / {_piece(other, at)}"


def _piece(text: str, at: int) -> str:
    return repr(text[at : at + CONTEXT]) if at < len(text) else "end of text"


def _milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f} ms"


def in_columns(table: Table) -> str:
    """The table as aligned text."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return "\n".join(queue.rstrip() for queue in lines)
