"""`ollama-balancer doctor`: finds what is wrong with this machine, the balancer's settings and its hosts.

`settings` reads what the balancer would start with, `machine`, `folder`, `ports` and `agents` check, `findings` prints.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

TEXT = "Checks this machine, the balancer's settings and each of its hosts, and says what to do about what is wrong."
EPILOG = """\
Give it the arguments that the balancer is started with. It reads config.yaml in mitmproxy's folder, the fleet file,
the hosts that have registered, and the hosts of a balancer that runs here. Exit code: 0 if there is no problem
(warnings are none), else 1. It changes nothing."""


def add_command(commands: Any) -> None:
    """Add the subcommand to those of argparse."""
    parser = commands.add_parser("doctor", help="find what is wrong, and what to do", description=TEXT, epilog=EPILOG)
    add = parser.add_argument
    add("-p", "--listen-port", metavar="PORT", help="the port that the balancer listens on (8080)")
    add("--listen-host", metavar="HOST", help="the address that it listens on (all)")
    add("--set", metavar="NAME=VALUE", action="append", default=[], dest="sets", help="an option; may be repeated")
    add(
        "--key-file",
        metavar="FILE",
        type=Path,
        help="file with a key that may read, where a running balancer needs one (its token in mitmproxy's folder)",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from .findings import Report  # only here: the other commands need none of this

    report = Report(sys.stdout)
    asyncio.run(_check(options, report))
    sys.exit(report.close())


async def _check(options: argparse.Namespace, report: Any) -> None:
    from ...gateway import descriptors
    from . import agents, folder, machine, ports
    from .settings import read

    settings = read(options.sets, options.listen_port, options.listen_host)
    report.add(*machine.versions(), *settings.findings)
    limit = descriptors.raise_limit()
    report.add(*machine.open_files(limit, settings.queue_size), *machine.clock())
    report.add(*folder.check(settings.confdir, token_given=bool(settings.token)))
    running = await ports.check(settings, options.key_file)
    report.add(*running.findings)
    listed, findings = await agents.listed(settings, running)
    report.add(*findings)
    if listed or not (settings.agents or settings.fleet.agents):
        report.add(*await agents.check(listed, settings.port, descriptors.most_probes(limit)))
