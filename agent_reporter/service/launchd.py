"""macOS: a launchd agent that starts at login or, with sudo, a daemon that starts at boot and runs as the same user."""

import os
import plistlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from .base import NAME, Call, Service, check_words


def service(root: Path = Path("/"), *, uid: int, home: Path, environ: Mapping[str, str] = os.environ) -> Service:
    """The service of the user, or of the host if the user is root; `root` is the root of its file system."""
    library = home / "Library" if uid else root / "Library"
    # A daemon must run as a user who can read the Python that sudo was called with, but little else.
    caller = environ.get("SUDO_USER", "root")
    owner = None if uid else "nobody" if caller == "root" else caller
    domain = f"gui/{uid}" if uid else "system"
    definition = library / ("LaunchAgents" if uid else "LaunchDaemons") / f"{NAME}.plist"
    token = library / "Application Support" / NAME / "token"
    log = library / "Logs" / f"{NAME}.log"
    stop = ("launchctl", "bootout", f"{domain}/{NAME}")
    return Service(
        definition=definition,
        token=token,
        text=partial(plist_text, token=token, log=log, owner=owner),
        start=(
            Call(stop, optional=True),
            Call(("launchctl", "enable", f"{domain}/{NAME}")),
            # The old instance may still be shutting down.
            Call(("launchctl", "bootstrap", domain, str(definition)), pause=0.5, tries=12),
        ),
        stop=(Call(stop, optional=True),),
        watch=f"tail -f '{log}'",
        reader=owner or "you",
        leftovers=(log,),
        owner=owner,
        nothing="Nothing is installed for this user. A service that was installed with sudo is removed with sudo.",
    )


def plist_text(command: Sequence[str], *, token: Path, log: Path, owner: str | None = None) -> str:
    """The property list that runs `command` with the token file `token`. Raises ValueError."""
    arguments = [*command, "--token-file", str(token)]
    check_words([*arguments, str(log), owner or ""])
    settings: dict[str, object] = {
        "Label": NAME,
        "ProgramArguments": arguments,
        "RunAtLoad": True,
        "KeepAlive": True,
        "ExitTimeOut": 15,
        "Umask": 0o077,
        "StandardErrorPath": str(log),
    }
    if owner is not None:
        settings["UserName"] = owner
    return plistlib.dumps(settings, sort_keys=False).decode()
