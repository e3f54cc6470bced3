"""Where the balancer can be reached."""

from collections.abc import Iterable
from dataclasses import dataclass

from mitmproxy import ctx

from agent_reporter import addresses

EVERYWHERE = ("", "0.0.0.0", "::")
"""Hosts that mean all addresses of the machine."""


@dataclass(frozen=True)
class Reach:
    url: str
    local: bool
    """Whether only this machine can use it."""


def reach(listening: Iterable[tuple[str, int]], local_ip: str | None) -> Reach | None:
    """Of where mitmproxy listens; None: nowhere. `local_ip` is this machine's address for others, if it has one."""
    found = [(host, port) for host, port in listening if port]
    for host, port in found:
        if host in EVERYWHERE:
            return Reach(f"http://{local_ip or 'THIS-HOST'}:{port}", local=False)
    found.sort(key=lambda address: _is_loopback(address[0]))
    if not found:
        return None
    host, port = found[0]
    return Reach(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", _is_loopback(host))


def listening() -> list[tuple[str, int]]:
    """Where mitmproxy listens now."""
    proxyserver = ctx.master.addons.get("proxyserver")
    return [(address[0], address[1]) for address in proxyserver.listen_addrs()] if proxyserver else []


def port() -> int | None:
    """The port that a program on this machine calls; None: mitmproxy listens on none."""
    return next((port for _, port in listening()), None)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or addresses.is_loopback(host)
