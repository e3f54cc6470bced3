"""The listening sockets: a burst of clients waits in the kernel, where it takes no descriptors."""

import asyncio
import logging
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

_tasks: set[asyncio.Task[None]] = set()

_replaced: weakref.WeakSet[asyncio.Server] = weakref.WeakSet()


def attach(proxyserver: Any) -> None:
    """Do so for all sockets on which mitmproxy listens, now and later; without effect where it does."""
    detach(proxyserver)
    if sys.platform != "win32":  # which accepts one client at a time
        proxyserver.servers.changed.connect(_changed)


def detach(proxyserver: Any) -> None:
    proxyserver.servers.changed.disconnect(_changed)


def _changed() -> None:
    task = asyncio.get_running_loop().create_task(_accept_few(), name="listening sockets")  # mitmproxy's start goes on
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def _accept_few() -> None:
    """Replace mitmproxy's servers by ones that accept few clients at once, on the same sockets.

    asyncio accepts up to 100 before it looks at any of them, and has no more wait in the kernel.
    """
    for instance in ctx.master.addons.get("proxyserver").servers:
        for server in [each for each in names.servers_of(instance) if isinstance(each, asyncio.Server)]:
            if server in _replaced:
                continue
            try:
                await _replace(instance, server)
            except OSError as e:
                logger.warning("Listening with a longer queue failed: %s; going on with mitmproxy's.", e)


async def _replace(instance: Any, server: asyncio.Server) -> None:
    replacements = []
    for listening in server.sockets:
        sock = listening.dup()
        try:
            replacements.append(await asyncio.start_server(instance.handle_stream, sock=sock, backlog=ACCEPTED_AT_ONCE))
        except OSError:
            sock.close()
            raise
        sock.listen(WAITING_CLIENTS)
    servers = names.servers_of(instance)
    if server in servers:
        server.close()
        at = servers.index(server)
        servers[at : at + 1] = replacements
        _replaced.update(replacements)
    else:  # it was stopped meanwhile
        for each in replacements:
            each.close()
