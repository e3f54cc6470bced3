"""Finds the process of the Ollama server and reads Ollama's settings from its environment.

A host may run several servers, for example one per GPU. The one that listens on the given port is used or, if the
listening sockets are not visible, the one whose OLLAMA_HOST has that port. Only the server's user and root can see all
of this; for others the settings are unknown.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import psutil

from ..addresses import Endpoint, is_loopback, own_ips, parse_ollama_host, plain_ip
from ..connecting import is_address

NAMES = frozenset(("ollama", "ollama.exe"))

PREFIX = "OLLAMA_"

HOST_VARIABLE = "OLLAMA_HOST"

RECHECK_SECONDS = 60.0
"""Seconds between searches for a server that was not found: a search takes some milliseconds of CPU."""


class Server(NamedTuple):
    """A process of an Ollama server, as far as the system shows it."""

    process: psutil.Process
    settings: Mapping[str, str] | None
    """None: not readable."""
    ports: frozenset[int] | None
    """The ports that it listens on. None: not readable."""
    in_container: bool
    """Whether its ports belong to a container."""


class ServerProcess:
    """Searched for once, and again when it has ended or Ollama answers again. `clock` returns monotonic seconds."""

    def __init__(
        self,
        processes: Callable[[], Iterable[psutil.Process]] = psutil.process_iter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processes = processes
        self._clock = clock
        self._process: psutil.Process | None = None
        self._settings: Mapping[str, str] = {}
        self._looked: float | None = None
        self._answers = False

    def heard(self, *, answers: bool) -> None:
        """Tell whether Ollama answers now. If it has just started to, the process is searched for again."""
        if answers and not self._answers:
            self._process, self._settings, self._looked = None, {}, None
        self._answers = answers

    async def settings(self, ollama: Endpoint) -> Mapping[str, str]:
        """The OLLAMA_ variables of that server; empty if it is not found or they are not readable."""
        if self._process is not None and not self._process.is_running():
            self._process, self._settings, self._looked = None, {}, None
        if self._process is None and (self._looked is None or self._clock() - self._looked >= RECHECK_SECONDS):
            self._looked = self._clock()
            await asyncio.to_thread(self._find, ollama)
        return self._settings

    def _find(self, ollama: Endpoint) -> None:
        if not _is_local_name(ollama.host):
            return
        server = choose([each for process in self._processes() if (each := _inspect(process))], ollama.port)
        if server is not None:
            self._process, self._settings = server.process, server.settings or {}


def choose(servers: Iterable[Server], port: int) -> Server | None:
    """The server with that port; None if unknown."""
    servers = list(servers)
    for server in servers:
        if not server.in_container and server.ports is not None and port in server.ports:
            return server
    # A container's port may be mapped to another one on the host, and two containers may use the same port.
    matching = [server for server in servers if _may_have(server, port)]
    return matching[0] if len(matching) == 1 else None


def _may_have(server: Server, port: int) -> bool:
    if server.ports is not None:
        return server.in_container and port in server.ports
    if server.settings is None:
        return True
    try:
        return parse_ollama_host(server.settings.get(HOST_VARIABLE, "")).port == port
    except ValueError:
        return False


def _inspect(process: psutil.Process) -> Server | None:
    """Inspect a process; None unless it is an accessible Ollama server."""
    try:
        if process.name().lower() not in NAMES or "serve" not in process.cmdline()[1:2]:
            return None
    except (psutil.Error, OSError):
        return None
    return Server(process, _settings_of(process), _ports_of(process), _in_other_namespace(process))


def _settings_of(process: psutil.Process) -> Mapping[str, str] | None:
    try:
        environment = process.environ()
    except (psutil.Error, OSError):
        return None
    return {name: value for name, value in environment.items() if name.startswith(PREFIX)}


def _ports_of(process: psutil.Process) -> frozenset[int] | None:
    try:
        connections = process.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return None
    return frozenset(each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN)


def _in_other_namespace(process: psutil.Process) -> bool:
    """Whether it has its own network namespace, if known."""
    try:
        return os.stat(f"/proc/{process.pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return False


def _is_local_name(host: str) -> bool:
    """Whether that name or address may belong to this host."""
    ip = plain_ip(host)
    return host == "localhost" or is_loopback(ip) or not is_address(ip) or ip in own_ips()
