"""Resolves names so that slow ones do not delay others.

asyncio resolves names in its default executor, whose few threads are shared with all blocking work, so a few names that
take ten seconds hold up everything. Here each look-up has a thread of its own, one per name at a time, with few threads
for slow names. Results are cached, and stay in use while they are refreshed and while name servers do not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

FRESH_SECONDS = 10.0
"""For which what was found is not asked again."""

FAILED_SECONDS = 2.0
"""For which a name that was not found is not asked again."""

SLOW_SECONDS = 1.0
"""A name whose look-up takes longer is slow."""

RENEWAL_SECONDS = 0.25
"""For which a look-up of a name that was quick is awaited before its last addresses are used again."""

MAX_NAMES = 4096
"""That are kept."""

MAX_THREADS = 128
MAX_SLOW = 32
"""Threads for names that are known to be slow."""

T = TypeVar("T")

Info: TypeAlias = tuple[int, int, int, str, Any]
"""As `getaddrinfo` gives it: family, type, protocol, canonical name, address."""

GONE = frozenset(number for name in ("EAI_NONAME", "EAI_NODATA") if (number := getattr(socket, name, None)) is not None)
"""Errors by which a name server says that there is no such name, or no address of it."""


@dataclass(eq=False)
class CachedName:
    """What is known of a name at a port."""

    infos: list[Info] = field(default_factory=list)
    error: OSError | None = None
    at: float = float("-inf")
    """When that was found out."""
    is_slow: bool = False
    lookup: asyncio.Task[None] | None = None

    def is_fresh(self, now: float) -> bool:
        return now - self.at < (FAILED_SECONDS if self.error is not None else FRESH_SECONDS)


class Resolver:
    """Looks names up for one event loop. Seconds are those of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._names: OrderedDict[tuple[str, int], CachedName] = OrderedDict()
        self._threads = asyncio.Semaphore(MAX_THREADS)
        self._slow = asyncio.Semaphore(MAX_SLOW)

    async def look_up(self, host: str, port: int) -> list[Info]:
        """Its addresses, one at least. Raises OSError."""
        name = self._names.get((host, port))
        if name is None:
            name = self._names[host, port] = CachedName()
            self._forget_some()
        self._names.move_to_end((host, port))
        if not name.is_fresh(self._clock()):
            if name.lookup is None:
                name.lookup = asyncio.get_running_loop().create_task(self._ask(name, host, port), name="look-up")
            if not name.infos:
                await asyncio.shield(name.lookup)
            elif not name.is_slow:
                await asyncio.wait((name.lookup,), timeout=RENEWAL_SECONDS)
        if name.infos:
            return name.infos
        if name.error is None:
            raise socket.gaierror(socket.EAI_AGAIN, "the lookup was cancelled")
        raise name.error.with_traceback(None)

    async def _ask(self, name: CachedName, host: str, port: int) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                if name.is_slow:
                    await stack.enter_async_context(self._slow)
                await stack.enter_async_context(self._threads)
                began = self._clock()
                try:
                    found = await in_thread(functools.partial(_get_address_info, host, port), "look-up")
                finally:
                    name.is_slow = self._clock() - began > SLOW_SECONDS
            name.infos, name.error = list(dict.fromkeys(found)), None
            if not found:
                name.error = socket.gaierror(socket.EAI_NONAME, "it has no address")
        except OSError as error:
            name.error = error
            if error.errno in GONE:
                name.infos = []
        except Exception as error:  # such as a NUL in the name
            name.infos, name.error = [], OSError(f"it cannot be resolved: {error}")
        finally:
            name.at, name.lookup = self._clock(), None

    def mark_suspect(self, host: str, port: int) -> None:
        """Resolve the name again before its next use, as nobody was reached."""
        name = self._names.get((host, port))
        if name is not None and name.error is None:
            name.at = float("-inf")

    def _forget_some(self) -> None:
        while len(self._names) > MAX_NAMES:
            self._names.popitem(last=False)


def _get_address_info(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error


def in_thread(work: Callable[[], T], name: str) -> asyncio.Future[T]:
    """What it returns or raises; in a thread that nobody waits for when the program ends, unlike asyncio's.

    Raises OSError if there are too many threads.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as e:
            error = e
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError as error:
        raise OSError("too many threads are running") from error
    return future


_resolvers: WeakKeyDictionary[asyncio.AbstractEventLoop, Resolver] = WeakKeyDictionary()


def _resolver() -> Resolver:
    loop = asyncio.get_running_loop()
    resolver = _resolvers.get(loop)
    if resolver is None:
        resolver = _resolvers[loop] = Resolver()
    return resolver


async def look_up(host: str, port: int) -> list[Info]:
    """The addresses of a name, by this loop's resolver. Raises OSError."""
    return await _resolver().look_up(host, port)


def mark_suspect(host: str, port: int) -> None:
    """Nobody was reached at the addresses of a name."""
    _resolver().mark_suspect(host, port)
