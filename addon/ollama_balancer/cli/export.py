"""`ollama-balancer export` prints saved prompts and answers as lines of JSON, or as an HAR."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .saved_files import NoFilesError, add_arguments, find_files

HELP = "saved prompts and answers as JSON lines or HAR"
DESCRIPTION = (
    "Prints the requests in files of flows that went through the balancer, one after the other, however large the "
    "files are. docs/inspection.md explains the fields."
)


def add_command(commands: Any) -> None:
    """Add the subcommand to those of argparse."""
    parser = commands.add_parser("export", help=HELP, description=DESCRIPTION)
    add_arguments(parser)
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--jsonl", action="store_true", help="a line of JSON for each request: prompt, answer, figures")
    form.add_argument("--har", action="store_true", help="HAR 1.2, for browsers' tools: heads and bodies as they were")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write to this file (mode 0600)")
    parser.set_defaults(run=lambda options: _export(parser, options))


def _export(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    from ..saved_flows.export import export  # only here: other commands need not wait for mitmproxy

    problems: list[str] = []

    def report(problem: str) -> None:
        problems.append(problem)
        print(problem, file=sys.stderr)

    try:
        files = find_files(options.files, options.confdir.expanduser())
        if options.output is not None and any(_is_same(options.output, file) for file in files):
            raise NoFilesError(f"{options.output} is read: give another file to -o")
        with _output(options.output) as out:
            counts = export(files, out, report, har=options.har)
            out.flush()
    except NoFilesError as e:
        parser.error(str(e))
    except BrokenPipeError:
        raise  # not an error: see main
    except OSError as e:
        sys.exit(f"{options.output or 'standard output'} cannot be written: {e.strerror or e}")
    if counts.others:
        report(f"{_left_out(counts.others)}: the balancer has no record of {'it' if counts.others == 1 else 'them'}")
    if counts.odd:
        report(f"{_left_out(counts.odd)}: the balancer cannot have written {'it' if counts.odd == 1 else 'them'}")
    if problems and not counts.written:
        sys.exit(1)


def _left_out(count: int) -> str:
    return "1 flow is left out" if count == 1 else f"{count} flows are left out"


def _is_same(output: Path, file: Path) -> bool:
    return output.exists() and output.samefile(file)


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
        return
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(handle, "wb") as file:
        if sys.platform != "win32":
            os.fchmod(handle, 0o600)
        yield file
