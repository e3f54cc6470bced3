"""`ollama-balancer check` finds what is wrong with a fleet file; `schema` prints its JSON Schema, for editors."""

import argparse
import json
import sys
from typing import Any

CHECK = "what is wrong with a fleet file, line by line"
SCHEMA = "the fleet file's JSON Schema, for editors"


def add_command(commands: Any) -> None:
    """Add the subcommands to those of argparse."""
    check = commands.add_parser(
        "check",
        help=CHECK,
        description="Prints what is wrong with a fleet file, with line numbers and what is accepted. The exit code is "
        "1 if there is anything.",
    )
    check.add_argument("file", metavar="FILE", help="the file that balancer_config names")
    check.set_defaults(run=_check)
    printed = commands.add_parser(
        "schema",
        help=SCHEMA,
        description="Prints the fleet file's JSON Schema. Save it beside the file and begin that with "
        "`# yaml-language-server: $schema=NAME`: editors complete and check it then.",
    )
    printed.set_defaults(run=_print_schema)


def _print_schema(_: argparse.Namespace) -> None:
    from ..settings.fleet_file import schema  # only here: other commands need not wait for the models

    print(json.dumps(schema(), indent=2))


def _check(options: argparse.Namespace) -> None:
    from ..settings.fleet import FleetFileError
    from ..settings.fleet_file import read_fleet

    try:
        fleet = read_fleet(options.file)
    except FleetFileError as e:
        for finding in e.findings:
            print(finding.at(e.path))
        sys.exit(1)
    print(f"{fleet.path} is fine: {fleet.summary}.")
