"""Connections: requests running on the host that did not come through a balancer.

Counts established TCP connections to the Ollama port. That is an upper bound, as idle keep-alive connections count too.
Connections of balancers are excluded, as they count their own requests. If a balancer runs on this host, connections of
the host to itself are excluded, as addresses do not show which are the balancer's. Ollama in a container may show none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import psutil

from ..addresses import any_is_local, is_loopback, own_ips, plain_ip, resolve
from ..states import StateLog
from .base import Fields, Host
from .process import NAMES


class Connection(NamedTuple):
    """A connection as psutil reports it: each end is (ip, port), or () if there is none."""

    local: tuple[str, int] | tuple[()]
    remote: tuple[str, int] | tuple[()]
    status: str


class ConnectionsCollector:
    """Collects `active_requests`. Raises psutil.AccessDenied if not even Ollama's connections are visible."""

    def __init__(self, host: Host) -> None:
        self._port = host.ollama.port
        self._balancers = host.balancers
        self._found: dict[str, frozenset[str]] = {}
        self._resolving = StateLog("fine")

    async def collect(self) -> Fields:
        await self._resolve()
        ips = frozenset[str]().union(*self._found.values())
        connections = await asyncio.to_thread(read_connections)
        return {"active_requests": count_active(connections, self._port, ips, any_is_local(ips, own_ips()))}

    async def _resolve(self) -> None:
        """Resolve the balancers; on failure the last known addresses stay."""

        async def look_up(name: str) -> str | None:
            try:
                self._found[name] = await resolve(name)
            except OSError:
                return name
            return None

        lost = [name for name in await asyncio.gather(*map(look_up, self._balancers)) if name]
        self._resolving.say(
            "failing" if lost else "fine",
            logging.WARNING if lost else logging.INFO,
            f"host not found: {', '.join(lost)}" if lost else "all balancers' hosts can be resolved",
        )


def count_active(connections: Iterable[Connection], port: int, balancers: frozenset[str], balancer_here: bool) -> int:
    """The number of connections to `port` from clients other than the balancers.

    `balancers` are IP addresses as `plain_ip` writes them. `balancer_here`: exclude connections of this host to itself.
    On loopback both ends of a connection are listed; only the server's end counts.
    """
    counted = set()
    for local, remote, status in connections:
        if status != psutil.CONN_ESTABLISHED or not local or not remote or local[1] != port:
            continue
        client, here = plain_ip(remote[0]), plain_ip(local[0])
        if client in balancers or (balancer_here and (is_loopback(client) or client == here)):
            continue
        counted.add((here, client, remote[1]))
    return len(counted)


def read_connections() -> list[Connection]:
    """All TCP connections of the host, or without the permission (macOS), those of the Ollama process.

    Raises psutil.AccessDenied if neither is permitted.
    """
    try:
        return [_connection(record) for record in psutil.net_connections(kind="tcp")]
    except psutil.AccessDenied:
        return _connections_of_ollama()


def _connections_of_ollama() -> list[Connection]:
    found: list[Connection] = []
    for process in psutil.process_iter(["name"]):
        if str(process.info["name"]).lower() in NAMES:
            try:
                found += [_connection(record) for record in process.net_connections(kind="tcp")]
            except psutil.NoSuchProcess:
                continue
    return found


def _connection(record: Any) -> Connection:
    return Connection(record.laddr, record.raddr, record.status)
