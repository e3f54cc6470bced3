"""The limit of open files: how many clients it allows, and errors that mean it is reached.

Each request uses two descriptors: the connection of the client and one to a host. Some are reserved for probes, files
and the control API.
"""

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

MAX_USEFUL = 1_048_576
"""A higher limit is never requested: some systems report one that they do not have."""

MIN_RESERVED = 64
MAX_RESERVED = 1024

LOG_SECONDS = 60.0
"""Seconds between two log lines about the same error."""

_OURS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))
_NUMBER = re.compile(r"\[Errno (\d{1,4})\]")


def raise_limit() -> int:
    """Raise the limit of open files as far as allowed; returns the limit, at most MAX_USEFUL."""
    if resource is None:
        return MAX_USEFUL
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_USEFUL if hard == resource.RLIM_INFINITY else min(hard, MAX_USEFUL)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as e:
            logger.warning("The open-file limit stays at %d: %s.", soft, e)
            return soft
    return wanted if soft == resource.RLIM_INFINITY or soft < wanted else min(soft, MAX_USEFUL)


def reserved(limit: int) -> int:
    """Descriptors reserved for other uses than clients."""
    return max(MIN_RESERVED, min(MAX_RESERVED, limit // 8))


def most_clients(limit: int) -> int:
    """Clients that the limit allows at once."""
    return max(8, (limit - reserved(limit)) // 2)


def most_probes(limit: int) -> int:
    """Concurrent probes of online hosts: all lanes of the prober together use most of the reserve."""
    return reserved(limit) // 4


def is_local_failure(error: BaseException | str | None) -> bool:
    """Whether a connection failed because this machine lacks a resource, which says nothing about the peer.

    Decided by the errno of the exception or its causes; for a text, by the errno that Python writes into it.
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
    """Replaces asyncio's traceback, logged up to a hundred times a second, when no connection can be accepted."""

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
