"""Windows: a scheduled task that starts at boot and runs as the user, without administrator rights.

The copy of the token is in the user's profile, which other users cannot read.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree

from .base import NAME, Call, Service, check_words

NAMESPACE = "http://schemas.microsoft.com/windows/2004/02/mit/task"


def service(
    environ: Mapping[str, str],
    *,
    is_admin: bool | None = None,
    name: str = NAME,
    file_name: str = "token",
    text: Callable[..., str] | None = None,
) -> Service:
    """The task of this user. Raises ValueError if the environment does not name the user.

    `text` makes the task of another program than the reporter, from what `task_text` takes.
    """
    try:
        folder = Path(environ["LOCALAPPDATA"]) / name
        user = f"{environ['USERDOMAIN']}\\{environ['USERNAME']}"
    except KeyError as missing:
        raise ValueError(f"{missing.args[0]} is not set in the environment") from None
    is_admin = _is_admin() if is_admin is None else is_admin
    definition, token = folder / "task.xml", folder / file_name
    return Service(
        definition=definition,
        token=token,
        text=partial(text or task_text, token=token, user=user),
        start=(
            Call(("schtasks", "/End", "/TN", name), optional=True),
            Call(("schtasks", "/Create", "/TN", name, "/XML", str(definition), "/F")),
            Call(("schtasks", "/Run", "/TN", name)),
        ),
        stop=(
            Call(("schtasks", "/End", "/TN", name), optional=True),
            Call(("schtasks", "/Delete", "/TN", name, "/F")),
        ),
        watch=f"schtasks /Query /TN {name} /V /FO LIST",
        reader="you",
        lacks=""
        if is_admin
        else "this needs an administrator: run it in a terminal opened with 'Run as administrator'",
        name=name,
        encoding="utf-16",  # always understood by schtasks
    )


def task_text(command: Sequence[str], *, token: Path, user: str) -> str:
    """The task that runs `command` with the token file `token` as `user`. Raises ValueError."""
    return task(
        "Reports this Ollama host's load and models to its balancers", [*command, "--token-file", str(token)], user
    )


def task(description: str, words: Sequence[str], user: str) -> str:
    """The task that runs that command line from boot on. Raises ValueError."""
    check_words([*words, user])
    for word in words:
        if "%" in word or "$(" in word:
            raise ValueError(f"{word!r} contains % or $(, which a scheduled task would expand")
    root = ElementTree.Element("Task", version="1.2", xmlns=NAMESPACE)
    _add(root, {
        "RegistrationInfo": {"Description": description},
        "Triggers": {"BootTrigger": {"Enabled": "true"}},
        # S4U: as this user, logged on or not, without a password kept.
        "Principals": {"Principal": {"UserId": user, "LogonType": "S4U", "RunLevel": "LeastPrivilege"}},
        "Settings": {
            "MultipleInstancesPolicy": "IgnoreNew",
            "DisallowStartIfOnBatteries": "false",
            "StopIfGoingOnBatteries": "false",
            "StartWhenAvailable": "true",
            "ExecutionTimeLimit": "PT0S",
            "Priority": "5",  # normal; the default of tasks, 7, would delay reports on a busy host
            "RestartOnFailure": {"Interval": "PT1M", "Count": "255"},
        },
        "Actions": {"Exec": {"Command": words[0], "Arguments": subprocess.list2cmdline(words[1:])}},
    })  # fmt: skip
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-16"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


_Tree: TypeAlias = "Mapping[str, str | _Tree]"


def _add(parent: ElementTree.Element, children: _Tree) -> None:
    for name, content in children.items():
        element = ElementTree.SubElement(parent, name)
        if isinstance(content, str):
            element.text = content
        else:
            _add(element, content)


def _is_admin() -> bool:
    if sys.platform == "win32":
        import ctypes

        return bool(ctypes.windll.shell32.IsUserAnAdmin())
    return False
