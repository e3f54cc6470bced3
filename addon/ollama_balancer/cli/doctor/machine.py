"""This machine: versions, open files, clock."""

import platform
import sys
import time
from collections.abc import Iterator
from importlib import metadata

from ... import tested_versions
from ...gateway.descriptors import most_clients
from .findings import Finding, ok, problem, warning

OLDEST_PYTHON = (3, 12)

EARLIEST = 1_767_225_600
"""The beginning of 2026, in seconds since 1970: no clock that is right shows a time before it."""


def versions(python: tuple[int, ...] = sys.version_info[:3], mitmproxy: str | None = None) -> Iterator[Finding]:
    """Whether the installed versions are tested ones; `mitmproxy` stands in for the installed one."""
    shown = ".".join(map(str, python))
    if python < OLDEST_PYTHON:
        yield problem(f"Python {shown} is too old", "install Python 3.12 or newer and create the environment with it")
    elif python[:2] < tested_versions.NEXT_PYTHON:
        yield ok(f"Python {shown}")
    else:
        yield warning(
            f"Python {shown} was not tested; {tested_versions.TESTED['Python']} were",
            "if something fails, create the environment with one of those",
        )
    try:
        installed = mitmproxy or metadata.version("mitmproxy")
    except metadata.PackageNotFoundError:
        yield problem(
            f"mitmproxy is not installed for {sys.executable}",
            "install it into the balancer's environment: python -m pip install 'mitmproxy>=12.2.2,<13'",
        )
        return
    if tested_versions.is_tested(installed):
        yield ok(f"mitmproxy {installed}")
    elif tested_versions.numbers(installed) < tested_versions.OLDEST:
        yield problem(f"mitmproxy {installed} is too old", f"install {tested_versions.TESTED['mitmproxy']}")
    else:
        yield warning(
            f"mitmproxy {installed} was not tested; {tested_versions.TESTED['mitmproxy']} were",
            "use it without the fast paths, which are off with it and cost CPU time, or install one of those",
        )


def open_files(limit: int, queue_size: int) -> Iterator[Finding]:
    """Whether the open-file limit, raised as far as it goes, has room for more clients than may wait."""
    clients = most_clients(limit)
    if clients > queue_size:
        yield ok(f"open-file limit {limit}: {clients} clients at once")
    else:
        yield problem(
            f"the open-file limit of {limit} allows {clients} clients at once; balancer_queue_size lets {queue_size} "
            "wait alone",
            f"raise the hard limit (ulimit -Hn {_enough(queue_size)}, or LimitNOFILE= of the service)",
        )


def _enough(queue_size: int) -> int:
    limit = 4096
    while most_clients(limit) <= 2 * queue_size:
        limit *= 2
    return limit


def clock(now: float | None = None) -> Iterator[Finding]:
    """Whether this machine's clock was set at all; `now` is in seconds since 1970."""
    now = time.time() if now is None else now
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if now < EARLIEST:
        remedy = "timedatectl set-ntp true" if platform.system() == "Linux" else "switch on the system's time service"
        yield problem(f"this machine's clock says {shown}", f"set it: {remedy}")
    else:
        yield ok(f"clock: {shown}")
