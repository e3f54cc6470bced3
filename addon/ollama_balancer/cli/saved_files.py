"""Which files `view` and `export` read: paths, days, or the newest day."""

import argparse
import os
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path

from ..storage.flow_files import DayFile, day_files
from .audit import add_confdir

FILES_HELP = (
    "a file of flows, a folder of them, or a day in the folder that balancer_store names in config.yaml: 2026-11-29, "
    "today, yesterday (UTC); none: the newest day"
)


class NoFilesError(ValueError):
    """There is nothing to read; its text says what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="*", help=FILES_HELP)
    add_confdir(parser)


def find_files(names: Sequence[str], confdir: Path, now: datetime | None = None) -> list[Path]:
    """The files, the oldest of a day first. NoFilesError: there are none."""
    today = (now or datetime.now(UTC)).date()
    found: list[Path] = []
    for name in names or [""]:
        path, day = Path(os.path.expanduser(name)), _day(name, today)
        if name and path.is_dir():
            found += [each.path for each in _listed(path)] or _none(f"{path} has no files named ollama-DAY.flow")
        elif name and (path.exists() or day is None):
            if not path.is_file():
                raise NoFilesError(f"there is no file {name!r}, and it is no day such as {today}")
            found.append(path)
        else:
            found += _of_day(day, confdir)
    return list(dict.fromkeys(found))


def _of_day(day: date | None, confdir: Path) -> list[Path]:
    """The files of that day, or of the newest one, in the folder that the configuration names."""
    from .doctor.settings import read

    folder = read([f"confdir={confdir}"]).store
    if not folder:
        raise NoFilesError(
            f"{confdir}/config.yaml and the fleet file that it names do not set balancer_store: name files, or their "
            "folder"
        )
    path = Path(os.path.expanduser(folder))
    days = {of: [each.path for each in files] for of, files in groupby(_listed(path), lambda each: each.day)}
    if not days:
        raise NoFilesError(f"{path} has no files yet")
    if day is not None and day not in days:
        raise NoFilesError(f"{path} has nothing of {day}; it has {min(days)} to {max(days)}")
    return days[max(days) if day is None else day]


def _listed(folder: Path) -> list[DayFile]:
    try:
        return day_files(folder)
    except OSError as e:
        raise NoFilesError(f"{folder} cannot be read: {e.strerror or e}") from e


def _none(why: str) -> list[Path]:
    raise NoFilesError(why)


def _day(name: str, today: date) -> date | None:
    relative = {"today": 0, "yesterday": 1}
    if name in relative:
        return today - timedelta(days=relative[name])
    try:
        return date.fromisoformat(name) if re.fullmatch(r"\d{4}-\d{2}-\d{2}", name, re.ASCII) else None
    except ValueError:
        return None
