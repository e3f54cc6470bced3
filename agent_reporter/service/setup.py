"""Installs and uninstalls a service."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..files import replace_file
from ..options import Options, Token
from .base import Call, Service, call, interpreter

Run = Callable[[Sequence[str]], str | None]
Sleep = Callable[[float], None]


def command_line(options: Options) -> list[str]:
    """The reporter's command line for these options, without a token."""
    words = [interpreter(), "-m", "agent_reporter"]
    for balancer in options.balancers:
        words += ["--balancer", balancer.url]
    if options.discover:
        words.append("--discover")
    words += ["--name", options.name, "--ollama", options.ollama.url]
    if options.advertise:
        words += ["--advertise", options.advertise]
    return [*words, "--interval", f"{options.interval:g}"]


def ask() -> bool | None:
    """The user's answer; None without a terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        return None
    try:
        return input("Install this? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        print()
        return False


def install(
    service: Service,
    command: Sequence[str],
    token: Token | None,
    *,
    confirm: Callable[[], bool | None] | None,
    run: Run = call,
    sleep: Sleep = time.sleep,
) -> int:
    """Show what would be installed; if `confirm` agrees, or is None, write and start it. `token` is None if the program
    needs none, or makes its own.

    Raises ValueError for a word that is not allowed in the definition.
    """
    text = service.text(command)
    print(f"{service.definition}:\n\n{text}")
    if token is not None:
        print(
            f"The token from {token.source} is copied to {service.token}, which only\n{service.reader} can read.",
            end=" ",
        )
    print(f"{'Then these' if token is not None else 'These'} are run:\n")
    print(_listed(service.start), end="\n\n", flush=True)
    if service.lacks:
        return _error(service, service.lacks)
    agreed = True if confirm is None else confirm()
    if agreed is None:
        return _error(service, "there is no terminal to ask on: read the above, then add --yes to install it")
    if not agreed:
        print("Nothing was installed.")
        return 1
    try:
        if service.makes_data:
            for folder in service.data:
                _make_private(folder, service.owner)
        if token is not None:
            replace_file(service.token, service.token_text(token.value).encode(), 0o600, service.owner)
        replace_file(service.definition, text.encode(service.encoding), 0o644)
    except OSError as error:
        return _error(service, f"can't write {error.filename or service.definition}: {error.strerror or error}")
    for position, each in enumerate(service.start):
        problem = _run(each, run, sleep)
        if problem is not None and not each.optional:
            return _error(
                service,
                f"`{each}` failed: {problem}\nThe files are written. Once that is fixed, run\n\n"
                f"{_listed(service.start[position:])}\n\nState and log: {service.watch}",
            )
    print(f"Installed and started. State and log: {service.watch}")
    return 0


def uninstall(service: Service, *, purge: bool = False, run: Run = call, sleep: Sleep = time.sleep) -> int:
    """Stop the service and remove its files, with `purge` also the program's own data; if stopping fails, continue and
    return 1.
    """
    own = (service.definition, service.token, *service.leftovers)
    files = [
        path for path in own if os.path.lexists(path) and (path == service.definition or not _is_data(service, path))
    ]
    data = [path for path in service.data if os.path.lexists(path)]
    if not files and not (purge and data):
        print(service.nothing)
        return 0
    if service.lacks:
        return _error(service, service.lacks)
    code = 0
    for each in service.stop if files else ():
        problem = _run(each, run, sleep)
        if problem is not None and not each.optional:
            code = _error(service, f"`{each}` failed: {problem}")
    for path in [*files, *(data if purge else ())]:
        try:
            _remove(path)
        except OSError as error:
            code = _error(service, f"can't remove {path}: {error.strerror or error}")
        else:
            print(f"removed {path}")
    with contextlib.suppress(OSError):  # not empty: something else is there
        service.token.parent.rmdir()
    for each in service.after_removal:
        _run(each, run, sleep)
    if data and os.path.lexists(data[-1]):
        print(f"kept {data[-1]}; --purge removes it too")
    return code


def _is_data(service: Service, path: Path) -> bool:
    return any(folder in path.parents for folder in service.data)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _run(each: Call, run: Run, sleep: Sleep) -> str | None:
    problem = None
    for _ in range(each.tries):
        sleep(each.pause)
        problem = run(each.words)
        if problem is None:
            break
    return problem


def _make_private(folder: Path, owner: str | None) -> None:
    """Make a folder that only its owner may look into."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if owner is not None:
        shutil.chown(folder, owner)


def _listed(calls: Iterable[Call]) -> str:
    return "\n".join(f"    {each}" for each in calls if not each.optional)


def _error(service: Service, message: str) -> int:
    print(f"{service.name}: error: {message}", file=sys.stderr)
    return 1
