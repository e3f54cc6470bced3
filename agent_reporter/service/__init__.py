"""Installs the reporter as a system service that starts at boot: `--install` and `--uninstall`.

`base` says what a service is; `systemd`, `launchd` and `windows` are one system each; `setup` does the work.
"""

import os
import sys
from pathlib import Path

from ..options import Options, Token
from . import setup
from .base import Service

__all__ = ["install", "uninstall"]


def install(options: Options, token: Token) -> int:
    """Show the service that runs the reporter with these options, ask, and install it. Returns the exit code.

    Raises ValueError for a value that is not allowed in a service definition.
    """
    return setup.install(_service(), setup.command_line(options), token, confirm=None if options.yes else setup.ask)


def uninstall() -> int:
    """Stop the service and remove everything that `install` created. Returns the exit code."""
    return setup.uninstall(_service())


def _service() -> Service:
    if sys.platform == "win32":
        from . import windows

        return windows.service(os.environ)
    if sys.platform == "darwin":
        from . import launchd

        return launchd.service(uid=os.geteuid(), home=Path.home())
    from . import systemd

    return systemd.service(is_root=os.geteuid() == 0)
