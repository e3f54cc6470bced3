"""The command `ollama-balancer`: each subcommand is a module beside this one."""

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from . import audit, check, doctor, export, install, keys, serve, top, usage, view


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="ollama-balancer",
        description="A load balancer for a fleet of Ollama hosts. Without a command it starts: "
        "`ollama-balancer --demo 3` is `ollama-balancer serve --demo 3`.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (serve, top, keys, usage, audit, view, export, check, doctor, install):
        module.add_command(commands)
    first = arguments[0] if arguments else ""
    if first == "serve":
        serve.serve(arguments[1:])
    elif first == "view":
        view.view(arguments[1:])
    elif first == "install":
        install.install(arguments[1:])
    elif not first or (first.startswith("-") and first not in ("-h", "--help", "--version")):
        serve.serve(arguments)
    else:
        options = parser.parse_args(arguments)
        options.run(options)


if __name__ == "__main__":
    main()
