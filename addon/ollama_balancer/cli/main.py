"""The command `ollama-balancer`: each subcommand is a module beside this one."""

import argparse
from collections.abc import Sequence

from .. import __version__
from . import audit, keys, top, usage


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="ollama-balancer", description="A load balancer for a fleet of Ollama hosts.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    keys.add_command(commands)
    audit.add_command(commands)
    top.add_command(commands)
    usage.add_command(commands)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
