"""`ollama-balancer usage`: who used what, from the file in the balancer's folder."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from ..core.ledger import DIMENSIONS
from ..core.usage_report import FIGURES, Row, as_csv, described, read_query
from ..storage.sqlite_file import SqliteFileError
from ..storage.usage import FILE_NAME, UsageFile
from ..tables import NONE, in_columns
from ..text import one_line
from .audit import CONFDIR

TEXT = "Requests, tokens and seconds by key, model, agent, day or hour (UTC)."

_HEADS = {"prompt_tokens": "prompt", "output_tokens": "output", "waited": "queued s", "seconds": "busy s"}


def add_command(commands: Any) -> None:
    """Add the subcommand to those of argparse."""
    parser = commands.add_parser("usage", help="who used what", description=TEXT)
    add = parser.add_argument
    add("--by", metavar="LIST", default="key,model", help=f"some of {','.join(DIMENSIONS)} (key,model)")
    add("--from", metavar="DAY", dest="begin", help="the first day, or a time (30 days ago)")
    add("--to", metavar="DAY", dest="end", help="the last day, or the time of the end (today)")
    add("--csv", action="store_true", help="print CSV")
    add("--confdir", metavar="DIR", type=Path, default=Path(CONFDIR), help=f"the balancer's folder ({CONFDIR})")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    file = UsageFile(options.confdir.expanduser() / FILE_NAME)
    try:
        query = read_query(options.by, options.begin, options.end, time.time())
        groups = file.sums(query)
    except (SqliteFileError, ValueError) as e:
        sys.exit(f"ollama-balancer: {e}")
    finally:
        file.close()
    rows = [described(query, group, values) for group, values in sorted(groups.items())]
    if options.csv:
        print(as_csv(query, rows), end="")
    elif rows:
        print(_table(query.by, rows))
    else:
        print(f"No usage in that time is kept in {file.path}.")


def _table(by: tuple[str, ...], rows: list[Row]) -> str:
    # A column for each outcome that there was.
    shown = [name for name in FIGURES if name in ("requests", *_HEADS) or any(row[name] for row in rows)]
    head = [*by, *(_HEADS.get(name, name) for name in shown)]
    cells = [[one_line(str(row[name]), 60) or NONE for name in (*by, *shown)] for row in rows]
    return in_columns([head, *cells])
