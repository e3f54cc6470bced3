"""Addresses as people write them, and whether a host is this one."""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil

from .connecting import is_address
from .limits import DEFAULT_OLLAMA_PORT
from .resolving import look_up
from .timeouts import timeout

RESOLVE_TIMEOUT = 2.0
"""Seconds a look-up of a host name may take."""

_LABELS = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_SCHEME_PORTS = {"http": 80, "https": 443}
_UNSPECIFIED = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class Endpoint:
    """Scheme, host (an IPv6 address without brackets) and port of a server."""

    scheme: str
    host: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_endpoint(text: str, *, default_port: int) -> Endpoint:
    """Read `http://host:port`, `host:port`, `host`, `:port` or an IP address, quoted or not.

    `default_port` is for an address without a scheme; with one, the scheme's own port stands in, as Ollama has it.
    An address that only a server can listen on (nothing, 0.0.0.0, ::) becomes the loopback one.
    Raises ValueError with what is wrong; the message never repeats `text`, which may hold a password.
    """
    text = text.strip().strip("\"'").strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    elif scheme.lower() in _SCHEME_PORTS:
        scheme = scheme.lower()
        default_port = _SCHEME_PORTS[scheme]
    else:
        raise ValueError("must begin with http:// or https://")
    if ":" in rest and is_address(rest):
        rest = f"[{rest}]"
    try:
        parts = urlsplit(f"//{rest}")
    except ValueError:
        raise ValueError("must be scheme://host:port") from None
    if "@" in parts.netloc:
        raise ValueError("must have no user or password")
    if parts.path not in ("", "/") or "?" in rest or "#" in rest:
        raise ValueError("must be scheme://host:port without a path")
    try:
        port = default_port if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not 1 <= port <= 65535:
        raise ValueError("must have a port from 1 to 65535")
    host = parts.hostname or ""
    host = _UNSPECIFIED.get(host, host)
    if not (_LABELS.fullmatch(host) or is_address(host)):
        raise ValueError("must have a host name or an IP address")
    return Endpoint(scheme, host, port)


def parse_ollama_host(text: str) -> Endpoint:
    """The local Ollama's address, in any form that $OLLAMA_HOST takes. Raises ValueError."""
    return parse_endpoint(text, default_port=DEFAULT_OLLAMA_PORT)


def plain_ip(text: str) -> str:
    """An IP address in one spelling: no zone, IPv4 where it is IPv4 in IPv6. Anything else comes back as it is."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def is_loopback(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return False


async def resolve(host: str) -> frozenset[str]:
    """The IP addresses of a host, in `plain_ip`'s spelling. Raises OSError (TimeoutError included)."""
    async with timeout(RESOLVE_TIMEOUT):
        found = await look_up(host, 0)
    return frozenset(plain_ip(str(sockaddr[0])) for *_, sockaddr in found)


def own_ips() -> frozenset[str]:
    """The IP addresses of this host's interfaces; empty where the system doesn't tell."""
    try:
        interfaces = psutil.net_if_addrs()
    except (OSError, psutil.Error):
        return frozenset()
    return frozenset(plain_ip(entry.address) for entries in interfaces.values() for entry in entries)


def any_is_local(ips: frozenset[str], own: frozenset[str]) -> bool:
    """Whether one of `ips` is this host, whose addresses are `own`."""
    return any(is_loopback(ip) or ip in own for ip in ips)
