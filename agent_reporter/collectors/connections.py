"""Connections: requests running on the host that did not come through a balancer.

What is counted are established TCP connections to the Ollama port. That is an upper bound: a client's idle keep-alive
connection looks the same as one with a request running. A balancer's own connections are left out, as it counts its
requests itself. Where a balancer runs on this very host, none of the host's connections to itself count, since the
addresses don't tell the balancer's from others. An Ollama in a container may show none at all.
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
    """One record of psutil: each end (ip, port), or () where there is none."""

    local: tuple[str, int] | tuple[()]
    remote: tuple[str, int] | tuple[()]
    status: str


class ConnectionsCollector:
    """Gives `active_requests`.

    Raises psutil.AccessDenied where not even the Ollama process's connections are shown.
    """

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
        """Look the balancers up; one that can't be found keeps the addresses it had."""

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
    """How many clients other than the balancers are connected to `port`.

    `balancers` are IP addresses in plain_ip's spelling. `balancer_here`: this host's connections to itself don't count.
    On a loopback both ends of a connection are listed; only the server's end counts.
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
    """All TCP connections of the host; without the right to that (macOS), those of the Ollama process.

    Raises psutil.AccessDenied without the right to either.
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
