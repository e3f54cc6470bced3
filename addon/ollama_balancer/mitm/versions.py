"""The installed versions, beside those that the balancer works with."""

import platform
from importlib import metadata

from mitmproxy import version

from .. import tested_versions
from ..tested_versions import TESTED, tested

__all__ = ["TESTED", "installed", "is_tested", "tested"]


def is_tested() -> bool:
    """Whether mitmproxy's version is one of those."""
    return tested_versions.is_tested(version.VERSION)


def installed() -> str:
    return f"mitmproxy {version.VERSION}, h11 {metadata.version('h11')}, Python {platform.python_version()}"
