"""File descriptors: how many there may be, how many connections that allows, and how it shows that there are none left.

Each client's request takes two: its own connection and one to a host. Some are kept for the hosts' probes, the files
that are written, and whoever looks what is wrong.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import time
from collections.abc import Callable
from typing import Any

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

MOST_USEFUL = 1_048_576
"""More than that is never asked for: some systems name a limit that they do not have."""

FEWEST_RESERVED = 64
MOST_RESERVED = 1024

LOG_SECONDS = 60.0
"""Between two lines about the same trouble."""

_OURS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))
_NUMBER = re.compile(r"\[Errno (\d{1,4})\]")


def raise_limit() -> int:
    """Allow this process as many open files as it may have; how many that are, MOST_USEFUL at most."""
    if resource is None:
        return MOST_USEFUL
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_USEFUL if hard == resource.RLIM_INFINITY else min(hard, MOST_USEFUL)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as e:
            logger.warning("The open-file limit stays at %d: %s.", soft, e)
            return soft
    return wanted if soft == resource.RLIM_INFINITY or soft < wanted else min(soft, MOST_USEFUL)


def reserved(limit: int) -> int:
    """How many of so many descriptors are kept for other things than clients."""
    return max(FEWEST_RESERVED, min(MOST_RESERVED, limit // 8))


def most_clients(limit: int) -> int:
    """How many clients may be connected with so many descriptors."""
    return max(8, (limit - reserved(limit)) // 2)


def most_probes(limit: int) -> int:
    """How many hosts that answer may be asked at once: all lanes of the probes together have most of the reserve."""
    return reserved(limit) // 4


def is_local_failure(error: BaseException | str | None) -> bool:
    """Whether a connection failed for want of something on this machine, which says nothing about the other side.

    By the number of the error, or of those that led to it; of a text, by what Python writes of it.
    """
    if isinstance(error, str):
        numbers = [int(number) for number in _NUMBER.findall(error)]
        return any(number in _OURS for number in numbers)
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and (error.errno in _OURS or is_local_failure(str(error))):
            return True
        if isinstance(error, BaseExceptionGroup) and any(map(is_local_failure, error.exceptions)):
            return True
        error = error.__cause__ or error.__context__
    return False


class QuietAccept:
    """Takes asyncio's word, with a traceback a hundred times a second, that no connection can be accepted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._before = loop.get_exception_handler()
        self._last = float("-inf")
        loop.set_exception_handler(self._handle)

    def restore(self) -> None:
        self._loop.set_exception_handler(self._before)

    def _handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _OURS and "accept" in str(context.get("message")):
            now = self._clock()
            if now - self._last >= LOG_SECONDS:
                self._last = now
                logger.error(
                    "No more connections can be accepted: %s. Raise the open-file limit (ulimit -n, LimitNOFILE=).",
                    error.strerror,
                )
        elif self._before is not None:
            self._before(loop, context)
        else:
            loop.default_exception_handler(context)
