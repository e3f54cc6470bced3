"""What a check has found, and how it is printed."""

import os
from dataclasses import dataclass
from enum import Enum
from typing import TextIO

from ...text import one_line

MAX_LINE = 400
"""Characters of a line: some of them come from hosts."""


class Level(Enum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """`what` is found, and the `remedy` unless all is well: a line each. `count` is of how many it tells."""

    level: Level
    what: str
    remedy: str = ""
    count: int = 1


def ok(what: str) -> Finding:
    return Finding(Level.OK, what)


def warning(what: str, remedy: str) -> Finding:
    return Finding(Level.WARNING, what, remedy)


def problem(what: str, remedy: str, count: int = 1) -> Finding:
    return Finding(Level.PROBLEM, what, remedy, count)


_COLOURS = {Level.OK: "\x1b[32m", Level.WARNING: "\x1b[33m", Level.PROBLEM: "\x1b[31m"}
_PLAIN = "\x1b[0m"


class Report:
    """Prints findings as they come: a line for each, and below it one that says what to do."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._coloured = output.isatty() and not os.environ.get("NO_COLOR")
        self._counts = dict.fromkeys(Level, 0)

    def add(self, *findings: Finding) -> None:
        for finding in findings:
            self._counts[finding.level] += finding.count
            label = f"{finding.level.value:9}"
            if self._coloured:
                label = f"{_COLOURS[finding.level]}{label}{_PLAIN}"
            self._print(f"{label}{one_line(finding.what, MAX_LINE)}")
            if finding.remedy:
                self._print(f"{'':9}→ {one_line(finding.remedy, MAX_LINE)}")

    def close(self) -> int:
        """Print the sum; the exit code."""
        problems, warnings = self._counts[Level.PROBLEM], self._counts[Level.WARNING]
        warned = f", {warnings} warning{'s' * (warnings != 1)}" if warnings else ""
        self._print(f"\n{problems or 'No'} problem{'s' * (problems != 1)}{warned}.")
        return 1 if problems else 0

    def _print(self, line: str) -> None:
        encoding = self._output.encoding or "utf-8"
        print(line.encode(encoding, "replace").decode(encoding), file=self._output, flush=True)
