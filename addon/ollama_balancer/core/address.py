"""Where an agent listens."""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from agent_reporter.limits import DEFAULT_OLLAMA_PORT

MAX_DNS_PREFIX = 24
"""Characters of the name of agents found in DNS: with the longest address it is a name of 64."""


@dataclass(frozen=True)
class Address:
    """A host, as a name or an IP address, and a port."""

    host: str
    port: int
    found_as: str = field(default="", compare=False)
    """The DNS name under which the host was found; empty: none."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read `http://host[:port]`; the port defaults to Ollama's. Anything else is a ValueError that says why."""
        shown = without_password(url)
        if len(shown) > 100:
            shown = shown[:100] + "…"
        if any(ord(c) <= 32 or ord(c) > 126 for c in url):
            raise ValueError(
                f"{shown!r} contains spaces, control characters or non-ASCII characters: write http://host:port"
            )
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as e:
            why = f" ({e})" if shown == url else ""
            raise ValueError(f"{shown!r} is not a URL{why}: write http://host:port") from None
        if parts.scheme != "http":
            raise ValueError(f"{shown!r} does not begin with http://: write http://host:port")
        if not host or parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(f"{shown!r} is not just a host and a port: write http://host:port")
        try:
            host.encode("idna")
        except UnicodeError as e:
            raise ValueError(f"{shown!r} has no valid host name: write http://host:port") from e
        if port == 0:
            raise ValueError(f"{shown!r} has port 0: give the port that Ollama listens on")
        return cls(host, DEFAULT_OLLAMA_PORT if port is None else port)

    def __str__(self) -> str:
        return self.text

    @functools.cached_property
    def text(self) -> str:
        """`host:port`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @functools.cached_property
    def authority(self) -> str:
        """What the host gets as `Host`: `host:port`, with the name it was found as."""
        return f"{self.found_as}:{self.port}" if self.found_as else self.text

    @property
    def url(self) -> str:
        return f"http://{self}"


@dataclass(frozen=True)
class DnsName:
    """A host name of which each address is an agent, and the port of them all."""

    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> DnsName:
        """Read `dns+http://name[:port]`. ValueError says what is wrong."""
        shown = without_password(url)[:100]
        scheme, _, rest = url.partition("+")
        if scheme.lower() != "dns" or not rest.lower().startswith("http://"):
            what = "https is not supported yet" if rest.lower().startswith("https://") else "it is no such URL"
            raise ValueError(f"{shown!r}: {what}; write dns+http://name:port")
        address = Address.parse(rest)
        try:
            ipaddress.ip_address(address.host)
        except ValueError:
            return cls(address.host, address.port)
        raise ValueError(f"{shown!r} has an IP address, which DNS does not resolve: write {address.url}")

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"dns+http://{self}"

    @property
    def prefix(self) -> str:
        """What the names of its agents begin with if nothing else is given: its first label."""
        return self.host.partition(".")[0][:MAX_DNS_PREFIX].rstrip("-")


def without_password(url: str) -> str:
    """A URL, or what was meant to be one, without what may be a secret: name and password, and the query."""
    before, at, after = url.rpartition("@")
    if at:
        slashes = before.find("//")
        begin = slashes + 2 if slashes >= 0 else before.find("=") + 1
        url = f"{before[:begin]}***@{after}"
    shown, mark, _ = url.partition("?")
    return shown + (mark and "?***")
