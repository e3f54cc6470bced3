"""The versions of mitmproxy and what is below it that the balancer works with."""

import platform
from importlib import metadata

from mitmproxy import version

TESTED = {"mitmproxy": "12.2.2 to 12.3.1", "h11": "0.16.0", "Python": "3.12 and 3.13"}
"""On all of these every test has passed."""

OLDEST, NEXT = (12, 2, 2), (12, 4)
"""Of mitmproxy: the oldest of these, and the first that may have changed what the balancer uses."""


def is_tested() -> bool:
    """Whether mitmproxy's version is one of those."""
    numbers = tuple(int(part) for part in version.VERSION.split(".") if part.isdigit())
    return OLDEST <= numbers < NEXT


def tested() -> str:
    return ", ".join(f"{name} {versions}" for name, versions in TESTED.items())


def installed() -> str:
    return f"mitmproxy {version.VERSION}, h11 {metadata.version('h11')}, Python {platform.python_version()}"
