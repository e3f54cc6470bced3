"""The command `ollama-balancer`: each subcommand is a module beside this one."""

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from . import audit, check, doctor, export, install, join_code, keys, lab, serve, top, usage, view

READ_THEIR_OWN = {"serve": serve.serve, "view": view.view, "lab": lab.lab, "install": install.install}
"""Commands whose arguments go on to other programs."""


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has left, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        sys.exit(1)


def _run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="ollama-balancer",
        description="A load balancer for a fleet of Ollama hosts. Without a command it starts: "
        "`ollama-balancer --demo 3` is `ollama-balancer serve --demo 3`.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (serve, top, keys, join_code, usage, audit, view, export, lab, check, doctor, install):
        module.add_command(commands)
    first = arguments[0] if arguments else ""
    if not first or (first.startswith("-") and first not in ("-h", "--help", "--version")):
        serve.serve(arguments)
    elif first in READ_THEIR_OWN:
        READ_THEIR_OWN[first](arguments[1:])
    else:
        options = parser.parse_args(arguments)
        options.run(options)


if __name__ == "__main__":
    main()
