"""A service, independent of the system: its definition, its copy of the token, and the calls that start it."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "ollama-agent-reporter"
TIMEOUT = 90.0
"""Seconds per call of a system tool."""


@dataclass(frozen=True)
class Call:
    """A call of a system tool. `pause` is the seconds before each of the `tries`."""

    words: tuple[str, ...]
    optional: bool = False
    pause: float = 0.0
    tries: int = 1

    def __str__(self) -> str:
        return shlex.join(self.words) if os.name == "posix" else subprocess.list2cmdline(self.words)


@dataclass(frozen=True)
class Service:
    """The files of a service, and the calls that start and stop it.

    `text` makes the definition from a command line without a token; it raises ValueError for a word that is not allowed
    there. `reader` is who can read the token, `owner` who owns it, None for the installing user; `token_text` is the
    content of its file. `watch` is the command that shows state and log. `lacks` says what the user needs for the
    installation; empty if nothing. `data` is where the program keeps files of its own, at several paths if one leads
    to the other; `makes_data` tells whether the installation makes that folder, as private to `owner`.
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
    name: str = NAME
    token_text: Callable[[str], str] = "{}\n".format
    data: tuple[Path, ...] = ()
    makes_data: bool = False


def check_words(words: Sequence[str]) -> None:
    """Raise ValueError for words with line breaks or other unprintable characters."""
    for word in words:
        if not word.isprintable():
            raise ValueError(f"{word!r} contains characters that are not allowed in a service definition")


def call(words: Sequence[str]) -> str | None:
    """Call a system tool; returns the error, or None."""
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
    """The path of the running Python interpreter, for the service."""
    return os.path.abspath(sys.executable)
