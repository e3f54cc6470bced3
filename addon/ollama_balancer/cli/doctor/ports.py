"""The port that the balancer listens on, and the balancer that may run there already."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from agent_reporter.addresses import is_loopback
from agent_reporter.http import CallError, call, parse_json

from ...text import one_line
from ..top import find_key
from .findings import Finding, ok, problem, warning
from .settings import Settings

EVERYWHERE = ("", "0.0.0.0", "::")
HEALTH_TIMEOUT = 2.0
LIST_TIMEOUT = 5.0
"""Seconds for answers of the running balancer."""
MAX_HEALTH = 64 * 1024
MAX_AGENTS = 32 * 1024 * 1024
"""Bytes of its answers."""


@dataclass
class Running:
    """A balancer that runs here, if one does, and its agents as GET /api/agents gives them."""

    found: bool = False
    agents: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


async def check(settings: Settings, key_file: Path | None) -> Running:
    """Whether the port is free, or a balancer answers there."""
    running = Running()
    where = f"port {settings.port}" + (f" of {settings.host}" if settings.host else "")
    try:
        await asyncio.to_thread(_bind, settings.host, settings.port)
    except OSError as e:
        if e.errno == errno.EADDRINUSE and await _is_balancer(settings):
            running.found = True
            running.findings.append(ok(f"{where}: a balancer runs here"))
            await _read_agents(running, settings, key_file)
        else:
            running.findings.append(_port_problem(e, settings, where))
    else:
        host = settings.host
        only = ", for this machine alone" if host == "localhost" or is_loopback(host) else ""
        running.findings.append(ok(f"{where} is free{only}"))
    return running


def _bind(host: str, port: int) -> None:
    """Listen there for a moment. Raises OSError."""
    for found in socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
        family, kind, protocol, _, address = found
        try:
            probe = socket.socket(family, kind, protocol)
        except OSError:
            continue  # without IPv6
        with probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
            probe.listen(1)


def _port_problem(error: OSError, settings: Settings, where: str) -> Finding:
    if isinstance(error, socket.gaierror):
        return problem(
            f"listen_host: {settings.host!r} is not found", "give an address of this machine, or none for all"
        )
    match error.errno:
        case errno.EADDRINUSE:
            return problem(
                f"{where} is used by {_user_of(settings.port)}",
                f"stop that, or start the balancer with --listen-port {_other(settings.port)}",
            )
        case errno.EACCES | errno.EPERM:
            return problem(
                f"this user may not listen on {where}",
                "take one above 1023: --listen-port 8080, or start it as a service",
            )
        case errno.EADDRNOTAVAIL:
            return problem(f"{settings.host} is no address of this machine", "give one that is, or none for all")
    return problem(f"nobody can listen on {where}: {error.strerror or error}", "choose another one: --listen-port 9090")


def _other(port: int) -> int:
    return 9090 if port != 9090 else 8080


def _user_of(port: int) -> str:
    try:
        for each in psutil.net_connections(kind="tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid:
                return f"{one_line(psutil.Process(each.pid).name(), 40)} (process {each.pid}), which is no balancer"
    except (psutil.Error, OSError):
        pass
    return "another program, which is no balancer"


def url_of(settings: Settings) -> str:
    """Where a balancer with these settings is reached from here."""
    host = "127.0.0.1" if settings.host in EVERYWHERE else settings.host
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


async def _is_balancer(settings: Settings) -> bool:
    try:
        answer = await call("GET", f"{url_of(settings)}/health", timeout=HEALTH_TIMEOUT, limit=MAX_HEALTH)
        body = parse_json(answer.body)
    except (CallError, ValueError):
        return False
    return answer.status in (200, 503) and isinstance(body, dict) and isinstance(body.get("agents"), dict)


async def _read_agents(running: Running, settings: Settings, key_file: Path | None) -> None:
    url = f"{url_of(settings)}/api/agents"
    try:
        answer = await call("GET", url, timeout=LIST_TIMEOUT, limit=MAX_AGENTS)
        if answer.status in (401, 403) and (headers := _credentials(settings, key_file)):
            answer = await call("GET", url, timeout=LIST_TIMEOUT, limit=MAX_AGENTS, headers=headers)
        if answer.status in (401, 403):
            running.findings.append(
                warning(
                    "the running balancer lists its agents only to those who have a key",
                    "give one with the right read: --key-file FILE",
                )
            )
            return
        listed = parse_json(answer.body)["agents"]
        running.agents = [each for each in listed if isinstance(each, dict)]
    except OSError as e:
        running.findings.append(
            problem(f"{key_file} cannot be read: {e.strerror or e}", "name a file that can be read")
        )
    except (CallError, ValueError, KeyError, TypeError) as e:
        why = str(e) if isinstance(e, CallError) else "its answer cannot be read"
        running.findings.append(warning(f"the running balancer does not list its agents: {why}", "restart it"))


def _credentials(settings: Settings, key_file: Path | None) -> dict[str, str]:
    """The header with a key, if there is one. Raises OSError if the file cannot be read."""
    key = settings.token if key_file is None else ""
    key = key or find_key(key_file, url_of(settings), settings.confdir)
    return {"Authorization": f"Bearer {key}"} if key and key.isascii() and key.isprintable() else {}


def statuses(agents: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    """Name, URL, status and reason of each agent of a running balancer."""
    for agent in agents:
        yield tuple(str(agent.get(name) or "")[:2100] for name in ("name", "url", "status", "reason"))  # type: ignore[misc]
