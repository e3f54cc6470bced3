"""Which web pages may call: the origins that Ollama itself allows, since the agents never see the Origin."""

import ipaddress
import re
import socket
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from urllib.parse import urlsplit

_LOCAL_HOSTS = {"localhost", "127.0.0.1", "0.0.0.0"}
_APP_SCHEMES = {"app", "file", "tauri", "vscode-webview", "vscode-file"}

LONGEST_HOST = 260
"""Characters of a Host header: a DNS name and a port."""

_PORT = re.compile(r":\d*$")
_HOST_PATTERN = re.compile(r"[a-zA-Z0-9.*_-]+")

_PATTERN = re.compile(r"\*|[a-zA-Z][a-zA-Z0-9+.-]*://[a-zA-Z0-9.*:_\[\]-]+")

ALLOWED_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
    "X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
    "X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
    "X-Stainless-Runtime-Version,X-Stainless-Timeout,X-Balancer-Agent,"
    "X-Balancer-Priority"
)
MAX_ASKED_HEADERS = 64
"""Names of headers in one preflight; browsers name those that the page sets."""

LONGEST_HEADER_NAME = 64

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

ALLOWED_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"


_ALWAYS_ALLOWED = frozenset(ALLOWED_HEADERS.lower().split(","))


def same_origin(origin: str, host: str) -> bool:
    """Whether a page of the balancer's own address calls; `host` is the Host header.

    Only for a Host that cannot be somebody's DNS entry made to point here: otherwise any page could claim to be ours.
    """
    return origin in (f"http://{host}", f"https://{host}") and _local_name(host)


def allowed_host(host: str, more: Iterable[str] = ()) -> bool:
    """Whether a request that comes over loopback may name that host (its Host header) as the one that it is meant for.

    A name with a dot that is not this machine's may be anybody's, made to point here so that a page can read what is
    served here as its own (DNS rebinding). `more` are names that may, in which `*` stands for anything.
    """
    if len(host) > LONGEST_HOST:
        return False
    name = host.lower().rpartition(":")[0] if _PORT.search(host) else host.lower()
    return "." not in name or _local_name(host) or any(fnmatchcase(name, pattern) for pattern in more)


@lru_cache(256)
def _local_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        own = socket.gethostname().lower()
        return name in ("localhost", own) or name.endswith((".localhost", ".local", ".internal"))
    return True


def allowed_origin(origin: str, more: Iterable[str] = ()) -> bool:
    """Whether Ollama would answer a page of that origin, or one of `more`, in which `*` stands for anything, does."""
    if any(fnmatchcase(origin.lower(), pattern) for pattern in more):
        return True
    try:
        parts = urlsplit(origin)
        host = parts.hostname
    except ValueError:
        return False
    if parts.scheme in _APP_SCHEMES:
        return True
    return parts.scheme in ("http", "https") and host in _LOCAL_HOSTS


def allowed_headers(requested: str) -> str:
    """Which headers a page of an allowed origin may send: Ollama's, and those it asks for (its preflight's value).

    Clients of other servers send their own: x-api-key, anthropic-version, traceparent. What is no header's name is left
    out.
    """
    names = [name.strip() for name in requested.split(",", MAX_ASKED_HEADERS)[:MAX_ASKED_HEADERS]]
    more = dict.fromkeys(
        name
        for name in names
        if len(name) <= LONGEST_HEADER_NAME and name.lower() not in _ALWAYS_ALLOWED and _TOKEN.fullmatch(name)
    )
    return ",".join((ALLOWED_HEADERS, *more))


def check_pattern(pattern: str) -> str:
    """An allowed origin as it is compared. ValueError: it is none."""
    if not _PATTERN.fullmatch(pattern):
        raise ValueError(f"{pattern[:100]!r} is not an origin")
    return pattern.lower().replace("[", "[[]")


def check_host_pattern(pattern: str) -> str:
    """A host's name as it is compared. ValueError: it is none."""
    if not _HOST_PATTERN.fullmatch(pattern):
        raise ValueError(f"{pattern[:100]!r} is not a host's name")
    return pattern.lower()
