"""`ollama-balancer serve` becomes mitmdump, mitmweb or mitmproxy with the addon loaded; `path` says where that is."""

import argparse
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "mitm" / "script" / "balancer.py"

HELP = "start the balancer (the default command)"
USAGE = "ollama-balancer [serve] [--web | --console] [--demo N] [MITMPROXY'S ARGUMENTS]"
EPILOG = """\
All other arguments are mitmproxy's own, such as --listen-port 9090 or --set balancer_agents=gpu-1=http://10.0.0.1:11434.
`ollama-balancer serve -- --options` lists its options, the balancer's among them."""
PATH_HELP = 'print the addon\'s file, for mitmdump -s "$(ollama-balancer path)"'


def add_command(commands: Any) -> None:
    """Add the subcommands to those of argparse; the arguments of `serve` are read by `serve`."""
    commands.add_parser("serve", help=HELP, add_help=False)
    path = commands.add_parser("path", help=PATH_HELP, description=PATH_HELP[0].upper() + PATH_HELP[1:] + ".")
    path.set_defaults(run=lambda _: print(SCRIPT))


def serve(arguments: Sequence[str]) -> None:
    """Start the balancer in the place of this process."""
    become(*command_line(arguments))


def become(tool: str, command: Sequence[str]) -> None:
    """Replace this process by mitmproxy's tool; on Windows, which cannot, wait for it and end with its exit code."""
    program = _program(tool)
    sys.stdout.flush()
    if sys.platform == "win32":
        try:
            sys.exit(subprocess.call([*program, *command]))  # noqa: S603 (what the user typed)
        except KeyboardInterrupt:
            sys.exit(130)
    os.execv(program[0], [*program, *command])  # noqa: S606 (what the user typed)


def command_line(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Which of mitmproxy's tools to start, and with which arguments."""
    parser = argparse.ArgumentParser(
        prog="ollama-balancer serve",
        usage=USAGE,
        description=HELP[0].upper() + HELP[1:] + ".",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    tools = parser.add_mutually_exclusive_group()
    tools.add_argument("--web", action="store_const", dest="tool", const="mitmweb", help="mitmweb instead of mitmdump")
    tools.add_argument("--console", action="store_const", dest="tool", const="mitmproxy", help="mitmproxy's console")
    parser.add_argument("--demo", metavar="N", type=int, help="start N simulated Ollama hosts to try it on")
    parser.set_defaults(tool="mitmdump")
    options, others = parser.parse_known_args(arguments)
    demo = [] if options.demo is None else ["--set", f"balancer_demo={options.demo}"]
    if "--" in others:
        others.remove("--")
    return options.tool, ["-s", str(SCRIPT), *demo, *others]


def _program(tool: str) -> list[str]:
    script = Path(sysconfig.get_path("scripts"), tool)
    if script.exists():
        return [str(script)]
    return [sys.executable, "-c", f"from mitmproxy.tools.main import {tool}; {tool}()"]
