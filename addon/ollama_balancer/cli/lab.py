"""`ollama-balancer lab`: what another mode would have done with saved flows."""

import sys
from collections.abc import Sequence
from typing import Any

HELP = "simulate what other modes would have done with saved requests"


def add_command(commands: Any) -> None:
    """Add the subcommand to those of argparse; its arguments are read by the lab."""
    commands.add_parser("lab", help=HELP, add_help=False)


def lab(arguments: Sequence[str]) -> None:
    from ..lab.__main__ import main  # only here: it takes long to import

    sys.exit(main(arguments))
