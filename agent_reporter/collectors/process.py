"""The Ollama server's process, and of its environment Ollama's own settings.

There may be several servers on a host, one a GPU: it is the one that listens on the port that was given. Where the
system does not show where a process listens, it is the one whose OLLAMA_HOST has that port. The system shows all of
that to the server's own user and to root; where it does not, the settings are not known.
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
"""Seconds after which a server that was not found is looked for again: a look costs some milliseconds of CPU."""


class Server(NamedTuple):
    """A process that serves, as far as the system shows it."""

    process: psutil.Process
    settings: Mapping[str, str] | None
    """None: they may not be read."""
    ports: frozenset[int] | None
    """On which it listens. None: that may not be read."""
    in_container: bool
    """Whether its ports are those of a container."""


class ServerProcess:
    """Found once, and again when it has ended or Ollama answers again. `clock` gives monotonic seconds."""

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
        """Whether Ollama answers now. Where it has begun to, its process is another one, or can be told only now."""
        if answers and not self._answers:
            self._process, self._settings, self._looked = None, {}, None
        self._answers = answers

    async def settings(self, ollama: Endpoint) -> Mapping[str, str]:
        """The OLLAMA_ variables of the server there; none where it is not found or they may not be read."""
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
    # The port of a container may be another one outside of it, and two of them may have the same.
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
    """Whether it has a network of its own, where the system tells."""
    try:
        return os.stat(f"/proc/{process.pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return False


def _is_local_name(host: str) -> bool:
    """Whether a server of that name or address may be one of this host's processes."""
    ip = plain_ip(host)
    return host == "localhost" or is_loopback(ip) or not is_address(ip) or ip in own_ips()
