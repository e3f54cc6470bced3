"""The versions of mitmproxy and what is below it that the balancer works with."""

from __future__ import annotations

import platform
from importlib import metadata

from mitmproxy import version

TESTED = {"mitmproxy": "12.2.0 to 12.3.1", "h11": "0.16.0", "Python": "3.12 and 3.13"}
"""On all of these every test has passed."""

OLDEST, NEWEST = (12, 2), (12, 3)
"""Of mitmproxy. The third number, as in 12.3.1, has changed nothing that the balancer uses so far."""


def is_tested() -> bool:
    """Whether mitmproxy's version is one of those."""
    numbers = tuple(int(part) for part in version.VERSION.split(".")[:2] if part.isdigit())
    return OLDEST <= numbers <= NEWEST


def tested() -> str:
    return ", ".join(f"{name} {versions}" for name, versions in TESTED.items())


def installed() -> str:
    return f"mitmproxy {version.VERSION}, h11 {metadata.version('h11')}, Python {platform.python_version()}"
