"""`ollama-balancer view` opens saved flows in a mitmweb of their own, beside a running balancer."""

import argparse
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..saved_flows import VIEWER_FOLDER
from .saved_files import NoFilesError, add_arguments, find_files
from .serve import become

SCRIPT = Path(__file__).parents[1] / "mitm" / "viewer_script" / "viewer.py"

FIRST_PORT, PORTS = 8081, 100

HELP = "look at saved prompts and answers in mitmweb"
DESCRIPTION = (
    "Opens files of flows in mitmweb, beside a running balancer: it proxies nothing, and neither reads nor writes the "
    "balancer's files. The page's address, with its token, is in what it prints."
)


def add_command(commands: Any) -> None:
    """Add the subcommand to those of argparse; its arguments are read by `view`."""
    commands.add_parser("view", help=HELP, add_help=False)


def view(arguments: Sequence[str]) -> None:
    """Become a mitmweb that shows the files."""
    become("mitmweb", command_line(arguments))


def command_line(arguments: Sequence[str]) -> list[str]:
    """mitmweb's arguments. What follows `--` is passed on."""
    ours = list(arguments)
    others = ours[ours.index("--") + 1 :] if "--" in ours else []
    parser = argparse.ArgumentParser(
        prog="ollama-balancer view",
        usage="ollama-balancer view [FILE ...] [--port PORT] [--no-browser] [-- MITMWEB'S ARGUMENTS]",
        description=DESCRIPTION,
    )
    add_arguments(parser)
    parser.add_argument("--port", type=int, help=f"the page's port (from {FIRST_PORT} on, the first that is free)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    options = parser.parse_args(ours[: len(ours) - len(others) - 1] if "--" in ours else ours)
    try:
        files = find_files(options.files, options.confdir.expanduser())
    except NoFilesError as e:
        parser.error(str(e))
    # A folder of its own: what config.yaml says is for the balancer, such as which scripts to load and where to listen.
    settings = {"confdir": tempfile.mkdtemp(prefix=VIEWER_FOLDER), "web_port": options.port or free_port()}
    command = ["--no-server", "-s", str(SCRIPT)]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    for file in files:
        command += ["--set", f"viewed_files={file.absolute()}"]
    return [*command, *(["--no-web-open-browser"] if options.no_browser else []), *others]


def free_port() -> int:
    """mitmweb's own port, or the next one that nobody has."""
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    return FIRST_PORT
