"""The listening sockets: a burst of clients waits in the kernel, where it takes no descriptors."""

import asyncio
import contextlib
import logging
import socket
import sys
import weakref
from typing import Any

from mitmproxy import ctx

from .compat import mitmproxy_names as names

logger = logging.getLogger(__name__)

ACCEPTED_AT_ONCE = 4
"""Clients accepted in a turn of the event loop. One that is refused has its descriptor for about eight turns."""

WAITING_CLIENTS = 1024
"""Clients that wait in the kernel to be accepted, where the system allows so many."""

_last: asyncio.Task[None] | None = None
"""The work after the latest change; it waits for the work before."""

_replaced: weakref.WeakSet[asyncio.Server] = weakref.WeakSet()


def attach(proxyserver: Any) -> None:
    """Do so for all sockets on which mitmproxy listens, now and later; without effect where it does."""
    if proxyserver is None or sys.platform == "win32":  # Windows accepts one client at a time
        return
    detach(proxyserver)
    proxyserver.servers.changed.connect(_changed)
    with contextlib.suppress(RuntimeError):  # without a loop nothing listens yet
        _changed()


def detach(proxyserver: Any) -> None:
    if proxyserver is not None:
        proxyserver.servers.changed.disconnect(_changed)


def _changed() -> None:
    global _last
    loop = asyncio.get_running_loop()
    _last = loop.create_task(_accept_few(_last), name="listening sockets")


async def _accept_few(before: asyncio.Task[None] | None) -> None:
    """Replace mitmproxy's servers by ones that accept few clients at once, on the same sockets.

    asyncio accepts up to 100 before it looks at any of them, and has no more wait in the kernel.
    """
    if before is not None and not before.done():
        await asyncio.wait([before])
    for instance in ctx.master.addons.get("proxyserver").servers:
        for server in [each for each in names.servers_of(instance) if isinstance(each, asyncio.Server)]:
            if server not in _replaced:
                await _replace(instance, server)


async def _replace(instance: Any, server: asyncio.Server) -> None:
    replacements: list[asyncio.Server] = []
    try:
        for listening in server.sockets:
            replacements.append(await _listen(listening, instance.handle_stream))
    except OSError as e:
        logger.warning("Listening with a longer queue failed: %s; going on with mitmproxy's.", e)
    servers = names.servers_of(instance)
    if replacements and len(replacements) == len(server.sockets) and server in servers:
        server.close()
        at = servers.index(server)
        servers[at : at + 1] = replacements
        _replaced.update(replacements)
    else:  # it failed, or mitmproxy listens there no more
        for each in replacements:
            each.close()


async def _listen(listening: socket.socket, handle: Any) -> asyncio.Server:
    sock = listening.dup()
    try:
        server = await asyncio.start_server(handle, sock=sock, backlog=ACCEPTED_AT_ONCE)
    except OSError:
        sock.close()
        raise
    sock.listen(WAITING_CLIENTS)
    return server
