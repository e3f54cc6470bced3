"""The balancer as a system service that starts at boot: what it is on each system, and from which arguments.

The reporter's machinery does the work (`agent_reporter.service`); here is what is different for the balancer: it keeps
files of its own, has sockets for many clients, and gets time to finish its requests.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import agent_reporter
from agent_reporter.options import Token
from agent_reporter.service import launchd, setup, systemd, windows
from agent_reporter.service.base import Service, interpreter

from ..gateway.descriptors import MAX_USEFUL
from ..settings.options import TABLE
from ..storage import token as tokens
from . import serve
from .doctor.settings import DEFAULT_PORT
from .install import HELP, sentence

NAME = "ollama-balancer"
DESCRIPTION = "Balances a fleet of Ollama hosts"
USAGE = "ollama-balancer install [--yes] [--web] [MITMPROXY'S ARGUMENTS]"
EPILOG = """\
All other arguments are those of `ollama-balancer serve`: they become the service's. Give files by absolute paths. Run
it again to change them. The token of balancer_token or ${} is copied to a file that only the service
can read."""

STOP_SECONDS = 15
"""Seconds that the end of the program may take, beside balancer_stop_timeout."""

LAUNCHD_FILES = 32_768
"""The open-file limit under launchd, which refuses more than the kernel allows one process."""

SECRETS = ("proxyauth", "upstream_auth", "cert_passphrase", "web_password")
"""mitmproxy's options that hold secrets."""

# What is left out, and why: MemoryDenyWriteExecute= breaks mitmproxy's TLS (callbacks of cffi), ProcSubset=pid hides
# the machine's memory. The filter of system calls takes away from the one before it.
UNIT = """\
EnvironmentFile=-{environment}
Environment=PYTHONUNBUFFERED=1
StateDirectory={name}
StateDirectoryMode=0700
WorkingDirectory=%S/{name}
Restart=on-failure
RestartSec=5
TimeoutStopSec={stop}
LimitNOFILE={files}
{capabilities}
PrivateDevices=yes
ProtectClock=yes
ProtectProc=invisible
SystemCallFilter=~@privileged"""


@dataclass(frozen=True)
class Plan:
    """What the service runs: `serve` with these arguments, which hold no secret."""

    arguments: tuple[str, ...]
    token: Token | None
    port: int
    stop_seconds: int


def install(arguments: Sequence[str]) -> int:
    """Show the service that serves with these arguments, ask, and install it. Returns the exit code."""
    try:
        plan, yes = read(arguments, os.environ)
        service = _service(plan)
        folder = service.data[-1]
        code = setup.install(service, command_line(plan, folder), plan.token, confirm=None if yes else setup.ask)
    except ValueError as error:
        print(f"ollama-balancer install: error: {error}", file=sys.stderr)
        return 2
    if code == 0:
        print(f"Its files are in {folder}, among them the token for reporters ({tokens.FILE_NAME}).")
    return code


def uninstall(*, purge: bool) -> int:
    """Stop the service and remove it; `purge`: with its files. Returns the exit code."""
    return setup.uninstall(_service(None), purge=purge)


def read(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[Plan, bool]:
    """What to install, and whether not to ask. Raises ValueError for what a service cannot have."""
    parser = argparse.ArgumentParser(
        prog="ollama-balancer install",
        usage=USAGE,
        description=f"{sentence(HELP)} Shows the service and asks first.",
        epilog=EPILOG.format(tokens.ENVIRONMENT),
        allow_abbrev=False,
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="NAME=VALUE", help="an option")
    parser.add_argument("-p", "--listen-port", metavar="PORT", help=f"the port for clients ({DEFAULT_PORT})")
    options, others = parser.parse_known_args(arguments)
    tool, _ = serve.command_line(others)
    if tool == "mitmproxy":
        raise ValueError("a service has no terminal for --console: take --web, or neither")
    sets = [each for each in options.sets if not each.startswith("balancer_token=")]
    given = [each.partition("=")[2] for each in options.sets if each.startswith("balancer_token=")]
    mode = environ.get("LOAD_BALANCER_MODE")
    if mode and not any(each.startswith("balancer_mode=") for each in sets):
        sets.append(f"balancer_mode={mode}")
    words = [word for each in sets for word in ("--set", each)]
    words += ["--listen-port", options.listen_port] if options.listen_port else []
    words += [*others, *(["--no-web-open-browser"] if tool == "mitmweb" else [])]
    _refuse_secrets(words)
    if any(each.startswith("confdir=") for each in [*sets, *others]):
        raise ValueError("leave out confdir: a service has a folder of its own")
    numbers = dict(each.partition("=")[::2] for each in sets)
    port = options.listen_port or numbers.get("listen_port", "")
    stop = numbers.get("balancer_stop_timeout", "")
    return Plan(
        tuple(words),
        _token(given, environ),
        int(port) if port.isdecimal() else DEFAULT_PORT,
        STOP_SECONDS + (int(stop) if stop.isdecimal() else TABLE["balancer_stop_timeout"].default),
    ), options.yes


def _token(given: Sequence[str], environ: Mapping[str, str]) -> Token | None:
    source = "balancer_token" if given else f"${tokens.ENVIRONMENT}"
    value = given[-1] if given else environ.get(tokens.ENVIRONMENT, "")
    if not value:
        return None
    try:
        return Token(tokens.check(value), source)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _refuse_secrets(words: Sequence[str]) -> None:
    """Everybody can read the definition of a service, and its command line."""
    for word in words:
        name = next((name for name in ("balancer_token", *SECRETS) if name in word.replace("-", "_")), None)
        if name is not None:
            raise ValueError(
                f"{name} would stand in the service's definition, which everybody can read: put it into config.yaml in "
                "the service's folder once that is installed"
            )
        if re.search(r"://[^/\s]*@", word):
            raise ValueError("a URL with a password would stand in the service's definition, which everybody can read")


def command_line(plan: Plan, folder: Path) -> list[str]:
    """The service's command line; `folder` is where it keeps its files."""
    own = ["--set", f"confdir={folder}"]
    return [interpreter(), "-m", "ollama_balancer.cli.main", "serve", *own, *plan.arguments]


def _service(plan: Plan | None) -> Service:
    """The service of this system; without a plan for its removal only."""
    if sys.platform == "win32":
        return windows_task(plan, os.environ)
    if sys.platform == "darwin":
        return launchd_job(plan, uid=os.geteuid(), home=Path.home())
    return systemd_unit(plan, is_root=os.geteuid() == 0)


def systemd_unit(plan: Plan | None, root: Path = Path("/"), *, is_root: bool) -> Service:
    """The unit of this host; `root` is the root of its file system."""
    environment = root / "etc" / NAME / "environment"
    state = root / "var/lib"
    return replace(
        systemd.host_service(NAME, environment, partial(_unit_text, plan, environment), root, is_root=is_root),
        token_text=lambda token: f"{tokens.ENVIRONMENT}={_quoted(token)}\n",
        data=(state / "private" / NAME, state / NAME),  # the second is a link that systemd makes
    )


def _unit_text(plan: Plan | None, environment: Path, command: Sequence[str]) -> str:
    assert plan
    low = plan.port < 1024
    settings = UNIT.format(
        environment=str(environment).replace("%", "%%"),
        name=NAME,
        stop=plan.stop_seconds,
        files=MAX_USEFUL,
        capabilities="CapabilityBoundingSet=CAP_NET_BIND_SERVICE\nAmbientCapabilities=CAP_NET_BIND_SERVICE"
        if low
        else "CapabilityBoundingSet=\nPrivateUsers=yes",
    )
    packages = (Path(agent_reporter.__file__).parent, Path(__file__).parents[1])
    folders = systemd.needed_folders(*packages, *_paths(plan.arguments))
    return systemd.unit(DESCRIPTION, command, settings, folders=folders)


def _paths(words: Sequence[str]) -> Iterator[Path]:
    """The files that arguments name."""
    for word in words:
        path = Path(word.rpartition("=")[2])
        if path.is_absolute() and path.exists():
            yield path


def _quoted(value: str) -> str:
    """A value for a file of variables, as systemd reads it."""
    return '"' + re.sub(r'(["\\`$])', r"\\\1", value) + '"'


def launchd_job(plan: Plan | None, root: Path = Path("/"), *, uid: int, home: Path) -> Service:
    """The agent of the user, or the daemon of the host if that is root; `root` is the root of its file system."""

    def text(command: Sequence[str], *, token: Path, log: Path, owner: str | None) -> str:
        assert plan
        settings: dict[str, object] = {
            "KeepAlive": {"SuccessfulExit": False},
            "ExitTimeOut": plan.stop_seconds,
            "WorkingDirectory": str(token.parent),
            "EnvironmentVariables": {"PYTHONUNBUFFERED": "1"},
            "SoftResourceLimits": {"NumberOfFiles": LAUNCHD_FILES},
            "HardResourceLimits": {"NumberOfFiles": LAUNCHD_FILES},
            "StandardOutPath": str(log),
            "StandardErrorPath": str(log),
        }
        return launchd.plist(NAME, command, settings, owner)

    job = launchd.service(root, uid=uid, home=home, name=NAME, file_name=tokens.FILE_NAME, text=text)
    return replace(job, data=(job.token.parent,), makes_data=True)


def windows_task(plan: Plan | None, environ: Mapping[str, str], *, is_admin: bool | None = None) -> Service:
    """The task of this user. Raises ValueError if the environment does not name the user."""

    def text(command: Sequence[str], *, token: Path, user: str) -> str:
        return windows.task(DESCRIPTION, command, user)

    task = windows.service(environ, is_admin=is_admin, name=NAME, file_name=tokens.FILE_NAME, text=text)
    return replace(task, data=(task.token.parent,), makes_data=True)
