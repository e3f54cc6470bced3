"""What a service is on every system: a definition that names a command, a copy of the token, calls that start it."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "ollama-agent-reporter"
TIMEOUT = 90.0
"""Seconds that one of the system's tools may take."""


@dataclass(frozen=True)
class Call:
    """A call of one of the system's tools. `pause` are the seconds before each of its `tries`."""

    words: tuple[str, ...]
    optional: bool = False
    pause: float = 0.0
    tries: int = 1

    def __str__(self) -> str:
        return shlex.join(self.words) if os.name == "posix" else subprocess.list2cmdline(self.words)


@dataclass(frozen=True)
class Service:
    """Where a system keeps the service, what it says, what starts and stops it.

    `text` makes the definition from a command line that has no token; it raises ValueError for a word that can't stand
    there. `reader` is who can read the token, `owner` the user to give it to, None where it is the one who installs.
    `watch` shows state and log. `lacks` says what the user needs to install, and is empty where nothing lacks.
    """

    definition: Path
    token: Path
    text: Callable[[Sequence[str]], str]
    start: tuple[Call, ...]
    stop: tuple[Call, ...]
    watch: str
    reader: str
    after_removal: tuple[Call, ...] = ()
    leftovers: tuple[Path, ...] = ()
    lacks: str = ""
    owner: str | None = None
    encoding: str = "utf-8"
    nothing: str = "Nothing is installed."


def check_words(words: Sequence[str]) -> None:
    """Raise ValueError for a word that holds a line break or another character that no definition can show."""
    for word in words:
        if not word.isprintable():
            raise ValueError(f"{word!r} contains characters that are not allowed in a service definition")


def call(words: Sequence[str]) -> str | None:
    """Call one of the system's tools. Gives what went wrong, or None."""
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and the words are this package's own
            words, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        return f"{words[0]} is not available here"
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"


def interpreter() -> str:
    """The Python that runs this, as the service is to call it."""
    return os.path.abspath(sys.executable)
