"""Where an agent listens."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from urllib.parse import urlsplit

from agent_reporter.limits import DEFAULT_OLLAMA_PORT


@dataclass(frozen=True)
class Address:
    """A host, as a name or an IP address, and a port."""

    host: str
    port: int

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

    @property
    def url(self) -> str:
        return f"http://{self}"


def without_password(url: str) -> str:
    """A URL, or what was meant to be one, without what may be a secret: name and password, and the query."""
    before, at, after = url.rpartition("@")
    if at:
        slashes = before.find("//")
        begin = slashes + 2 if slashes >= 0 else before.find("=") + 1
        url = f"{before[:begin]}***@{after}"
    shown, mark, _ = url.partition("?")
    return shown + (mark and "?***")
