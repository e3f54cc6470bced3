"""Linux: a sandboxed systemd unit with a dynamic user.

The token is passed as a credential: only root can read the file, and only the running service gets its content.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from .base import NAME, Call, Service, check_words, interpreter

HOMES = ("/home", "/root", "/run/user")
"""What ProtectHome= hides."""

UNIT = """\
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}

DynamicUser=yes
NoNewPrivileges=yes
ProtectSystem=strict
{home}
PrivateTmp=yes
UMask=0077
ProtectHostname=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

{settings}

[Install]
WantedBy=multi-user.target
"""

# What is left out, and why: PrivateDevices= and ProtectClock= would take the GPUs' devices away, ProcSubset=pid the
# counters in /proc, and a Nice= or CPUQuota= would hold up reports just when the host is busiest.
REPORTER = """\
LoadCredential=token:{token}
Restart=always
RestartSec=5
# Wrong options stay wrong.
RestartPreventExitStatus=2
TimeoutStopSec=15
MemoryMax=256M
CapabilityBoundingSet=
MemoryDenyWriteExecute=yes"""


def service(root: Path = Path("/"), *, is_root: bool) -> Service:
    """The reporter's service on this host; `root` is the root of its file system."""
    token = root / "etc" / NAME / "token"
    package = Path(__file__).parents[1]
    text = partial(unit_text, token=token, folders=needed_folders(package))
    return host_service(NAME, token, text, root, is_root=is_root)


def host_service(
    name: str, token: Path, text: Callable[[Sequence[str]], str], root: Path = Path("/"), *, is_root: bool
) -> Service:
    """A service of this host, whose unit is made by `text`."""
    return Service(
        definition=root / "etc/systemd/system" / f"{name}.service",
        token=token,
        text=text,
        start=(
            Call(("systemctl", "daemon-reload")),
            Call(("systemctl", "enable", name)),
            Call(("systemctl", "restart", name)),
            Call(("systemctl", "is-active", name), pause=3.0),
        ),
        stop=(Call(("systemctl", "disable", "--now", name)),),
        after_removal=(
            Call(("systemctl", "daemon-reload"), optional=True),
            Call(("systemctl", "reset-failed", name), optional=True),
        ),
        watch=f"journalctl -u {name}",
        reader="root",
        lacks="" if is_root else "this needs root: run it with sudo",
        name=name,
    )


def needed_folders(*paths: str | Path) -> list[Path]:
    """Of Python's folders and these paths, those in homes: the service must see them."""
    # A link is bound with its folder: bound alone, Python could not find its library through it.
    interpreter_folders = [link.parent for link in links(Path(interpreter()))]
    return in_homes([sys.prefix, sys.base_prefix, *paths, *interpreter_folders])


def unit_text(command: Sequence[str], *, token: Path, folders: Sequence[Path] = ()) -> str:
    """The unit that runs the reporter's `command` with the token file `token`. Raises ValueError."""
    check_words([str(token)])
    return unit(
        "Reports this Ollama host's load and models to its balancers",
        command,
        REPORTER.format(token=str(token).replace("%", "%%")),
        folders=folders,
        last=" --token-file ${CREDENTIALS_DIRECTORY}/token",
    )


def unit(
    description: str, command: Sequence[str], settings: str, *, folders: Sequence[Path] = (), last: str = ""
) -> str:
    """The unit that runs `command`, and after its words `last`. Of the home directories, only `folders` are visible.

    Raises ValueError.
    """
    check_words([*command, *map(str, folders)])
    program, *arguments = command
    if re.search(r"[\"'\\]", program):
        raise ValueError(f"systemd runs no program whose path has a quote or a backslash: {program}")
    home = "ProtectHome=yes"
    if folders:
        home = "ProtectHome=tmpfs\nBindReadOnlyPaths=" + " ".join(quoted(str(folder)) for folder in folders)
    # systemd puts variables into arguments, not into the program's own path.
    words = [quoted(program), *(quoted(argument).replace("$", "$$") for argument in arguments)]
    return UNIT.format(description=description, command=" ".join(words) + last, settings=settings, home=home)


def quoted(word: str) -> str:
    """A word, quoted and escaped for a unit file."""
    word = word.replace("%", "%%")
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./\[\]-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def links(path: Path) -> list[Path]:
    """A path and the targets of its chain of links."""
    found = [path]
    while found[-1].is_symlink() and len(found) < 40:
        found.append(Path(os.path.abspath(found[-1].parent / found[-1].readlink())))
    return found


def in_homes(paths: Iterable[str | Path], homes: Sequence[str] = HOMES) -> list[Path]:
    """The paths and link targets that ProtectHome= would hide, without those inside another."""
    hidden = {Path(home) for home in homes} | {Path(home).resolve() for home in homes}
    both = {each for path in paths for each in (Path(os.path.abspath(path)), Path(path).resolve())}
    found = {path for path in both if hidden & {path, *path.parents}}
    return sorted(path for path in found if not found & set(path.parents))
