"""`ollama-balancer install` and `uninstall`: the balancer as a system service. `service` does it, imported late."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

HELP = "run the balancer as a system service, from boot on"
UNINSTALL_HELP = "stop and remove that service"


def add_command(commands: Any) -> None:
    """Add the subcommands to those of argparse; the arguments of `install` are read by `service`."""
    commands.add_parser("install", help=HELP, add_help=False)
    parser = commands.add_parser("uninstall", help=UNINSTALL_HELP, description=f"{sentence(UNINSTALL_HELP)}")
    parser.add_argument(
        "--purge", action="store_true", help="also remove its token, client keys, usage and other files"
    )
    parser.set_defaults(run=_uninstall)


def install(arguments: Sequence[str]) -> None:
    """Show the service that serves with these arguments, ask, install it, and exit."""
    from . import service

    sys.exit(service.install(arguments))


def _uninstall(options: argparse.Namespace) -> None:
    from . import service

    sys.exit(service.uninstall(purge=options.purge))


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
