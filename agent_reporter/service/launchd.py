"""macOS: a launchd agent that starts at login or, with sudo, a daemon that starts at boot and runs as the same user."""

import os
import plistlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from .base import NAME, Call, Service, check_words


def service(
    root: Path = Path("/"),
    *,
    uid: int,
    home: Path,
    environ: Mapping[str, str] = os.environ,
    name: str = NAME,
    file_name: str = "token",
    text: Callable[..., str] | None = None,
) -> Service:
    """The service of the user, or of the host if the user is root; `root` is the root of its file system.

    `text` makes the property list of another program than the reporter, from what `plist_text` takes.
    """
    library = home / "Library" if uid else root / "Library"
    # A daemon must run as a user who can read the Python that sudo was called with, but little else.
    caller = environ.get("SUDO_USER", "root")
    owner = None if uid else "nobody" if caller == "root" else caller
    domain = f"gui/{uid}" if uid else "system"
    definition = library / ("LaunchAgents" if uid else "LaunchDaemons") / f"{name}.plist"
    token = library / "Application Support" / name / file_name
    log = library / "Logs" / f"{name}.log"
    stop = ("launchctl", "bootout", f"{domain}/{name}")
    return Service(
        definition=definition,
        token=token,
        text=partial(text or plist_text, token=token, log=log, owner=owner),
        start=(
            Call(stop, optional=True),
            Call(("launchctl", "enable", f"{domain}/{name}")),
            # The old instance may still be shutting down.
            Call(("launchctl", "bootstrap", domain, str(definition)), pause=0.5, tries=12),
        ),
        stop=(Call(stop, optional=True),),
        watch=f"tail -f '{log}'",
        reader=owner or "you",
        leftovers=(log,),
        owner=owner,
        name=name,
        nothing="Nothing is installed for this user. A service that was installed with sudo is removed with sudo.",
    )


def plist_text(command: Sequence[str], *, token: Path, log: Path, owner: str | None = None) -> str:
    """The property list that runs `command` with the token file `token`. Raises ValueError."""
    return plist(
        NAME, [*command, "--token-file", str(token)], {"ExitTimeOut": 15, "StandardErrorPath": str(log)}, owner
    )


def plist(name: str, arguments: Sequence[str], settings: Mapping[str, object], owner: str | None) -> str:
    """The property list of a service that is kept alive, with more settings. Raises ValueError."""
    check_words([*arguments, *(value for value in settings.values() if isinstance(value, str)), owner or ""])
    everything: dict[str, object] = {
        "Label": name,
        "ProgramArguments": list(arguments),
        "RunAtLoad": True,
        "KeepAlive": True,
        "Umask": 0o077,
        **settings,
    }
    if owner is not None:
        everything["UserName"] = owner
    return plistlib.dumps(everything, sort_keys=False).decode()
