"""`ollama-balancer audit`: checks the file in the balancer's folder that says what operators changed."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from ..gateway.audit import entry_of
from ..storage.audit import FILE_NAME, AuditFile

CONFDIR = "~/.mitmproxy"

COMMAND_LINE = "command line"

_HASH = re.compile(r"[0-9a-f]{64}")


def add_command(commands: Any) -> None:
    """Add the subcommand to those of argparse."""
    parser = commands.add_parser("audit", help="the record of what operators changed")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    text = "Check that no line of the audit file was changed or taken out; the exit status is 1 if one was."
    verify = actions.add_parser("verify", help=text, description=text)
    add_confdir(verify)
    verify.add_argument("--known", metavar="HASH", type=_hash, help="a hash printed before, which must still be there")
    verify.set_defaults(run=_verify)


def add_confdir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--confdir", metavar="DIR", type=Path, default=Path(CONFDIR), help=f"the balancer's folder ({CONFDIR})"
    )


def record(folder: Path, what: str, object: str, **details: object) -> None:
    """Record a change by whoever runs the command line. OSError: it cannot be."""
    AuditFile(folder).append(entry_of(time.time(), f"user {_user()}", COMMAND_LINE, what, object, details))


def _verify(options: argparse.Namespace) -> None:
    file = AuditFile(options.confdir.expanduser())
    try:
        verdict = file.verify(options.known or "")
    except OSError as e:
        sys.exit(f"ollama-balancer: the audit file {file.path} cannot be read ({e.strerror or e})")
    if verdict.problem is not None:
        sys.exit(f"{FILE_NAME} is broken at line {verdict.lines}: {verdict.problem}")
    if options.known and not verdict.known:
        sys.exit(f"{FILE_NAME} has no line with the hash {options.known}: lines are missing, or all were written anew")
    print(f"{FILE_NAME} is whole: {verdict.lines} lines, the last one has the hash {verdict.last}")


def _hash(text: str) -> str:
    if not _HASH.fullmatch(text):
        raise argparse.ArgumentTypeError("a hash is 64 digits from 0 to f")
    return text


if sys.platform == "win32":
    import getpass

    def _user() -> str:
        return getpass.getuser()

else:
    import pwd

    def _user() -> str:
        """The name of the user whose process this is: the environment may name anybody."""
        try:
            return pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return str(os.getuid())
