"""Says when a reporter is older than this balancer, and how to upgrade it."""

import re

from agent_reporter.wire import AgentMetrics

from .. import __version__
from .paths import JOIN_PAGE

SOMEWHERE = "http://BALANCER:8080"
"""Stands for the balancer's address where that is not known."""

_RELEASE = re.compile(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?")


def is_older(version: str, own: str = __version__) -> bool:
    """Whether a reporter of that version is of an older release; one that cannot be read is not."""
    theirs, ours = _release(version), _release(own)
    return theirs is not None and ours is not None and theirs < ours


def older_version(metrics: AgentMetrics | None) -> str | None:
    """The version of the reporter that has sent these, if it is older than the balancer."""
    version = metrics.reporter_version if metrics is not None else None
    if version is None or version == __version__:
        return None
    return version if is_older(version) else None


def notice(metrics: AgentMetrics | None, url: str = SOMEWHERE) -> str | None:
    """What to do about the reporter that has sent these; None: nothing. `url` is the balancer's."""
    version = older_version(metrics)
    if version is None:
        return None
    return (
        f"its reporter has version {version}, the balancer {__version__}: to upgrade it, run on the host: "
        f"curl -fsS {url}{JOIN_PAGE} | sh"
    )


def _release(version: str) -> tuple[int, ...] | None:
    match = _RELEASE.match(version)
    return None if match is None else tuple(int(part or 0) for part in match.groups())
