"""A connection to a host that may have several addresses: the next is tried where one does not answer (RFC 8305).

asyncio's own `happy_eyeballs_delay` fails in Python 3.12.7, 3.13.0 and older ones of both under a task factory that
begins tasks at once, as mitmproxy has it. Beside that, the address that answered last is tried first here, so that a
dead one costs its delay once.
"""

import asyncio
import errno
import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from .resolving import Info, look_up, mark_suspect

DELAY = 0.25
"""Seconds until the next address is tried beside one that has not answered: what RFC 8305 recommends."""

MAX_ADDRESSES = 8
"""Of one name that are tried."""

MAX_NAMES = 1024
"""Whose last address is remembered."""

_answered: OrderedDict[tuple[str, int], Any] = OrderedDict()
"""The last working address of each name."""


def is_address(host: str) -> bool:
    """Whether that is an IP address, which needs no look-up and has no other beside it."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def addresses_of(host: str, port: int) -> list[Info]:
    """The addresses in the order to try: the last working one, then alternating families.

    Raises OSError.
    """
    if is_address(host) and "%" not in host:  # without a look-up, for which a thread is taken
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
    infos = interleaved(await look_up(host, port))[:MAX_ADDRESSES]
    last = _answered.get((host, port))
    return sorted(infos, key=lambda info: info[4] != last)


def interleaved(infos: Iterable[Info]) -> list[Info]:
    """Addresses of one family and of the other in turn, each family in its order."""
    families: dict[int, list[Info]] = {}
    for info in infos:
        families.setdefault(info[0], []).append(info)
    ordered: list[Info] = []
    while any(families.values()):
        ordered += [members.pop(0) for members in families.values() if members]
    return ordered


async def connect(host: str, port: int) -> socket.socket:
    """A connected socket, which does not block. Raises OSError: why nobody was reached."""
    infos = await addresses_of(host, port)
    try:
        return await first_of(host, port, infos)
    except BaseException:  # a time-out as well
        mark_suspect(host, port)
        raise


async def first_of(host: str, port: int, infos: Iterable[Info]) -> socket.socket:
    """Try them in their order, each while those before it have not failed for `DELAY` yet; the first to answer wins.

    Raises OSError.
    """
    loop = asyncio.get_running_loop()
    left = list(infos)
    running: set[asyncio.Task[None]] = set()
    failures: list[OSError] = []
    won: list[tuple[socket.socket, Info]] = []

    async def attempt(info: Info) -> None:
        made: socket.socket | None = None
        try:
            made = socket.socket(*info[:3])
            made.setblocking(False)
            await loop.sock_connect(made, info[4])
        except BaseException as error:
            if made is not None:
                made.close()
            if not isinstance(error, OSError):
                raise
            failures.append(error)
        else:
            won.append((made, info))

    try:
        while not won and (left or running):
            if left:
                running.add(loop.create_task(attempt(left.pop(0))))
            wait = DELAY if left else None
            _, running = await asyncio.wait(running, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    except BaseException:
        for task in running:
            task.cancel()
        for made, _ in won:
            made.close()
        raise
    if not won:
        raise _most_telling(failures)
    (first, info), *others = won
    for made, _ in others:
        made.close()
    _answered[host, port] = info[4]
    _answered.move_to_end((host, port))
    if len(_answered) > MAX_NAMES:
        _answered.popitem(last=False)
    return first


def _most_telling(failures: list[OSError]) -> OSError:
    """The most informative error: a local failure first, then a refusal."""
    ranks = (errno.EMFILE, errno.ENFILE, errno.ECONNREFUSED)
    ranked = sorted(failures, key=lambda error: ranks.index(error.errno) if error.errno in ranks else len(ranks))
    return ranked[0] if ranked else OSError("it has no address")
