"""Every private name of mitmproxy, h11 and Python that the balancer uses, and everything that it replaces in them.

No other module has such a name. Each is in a table of this package, with a check of what stands behind it; all checks
are run when the balancer is loaded. Without an indispensable name the balancer refuses to start; a fast path that
lacks one of its names is off.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from .. import versions
from . import h11_names, mitmproxy_names, python_names
from .names import Name, Use

NAMES: list[Name] = [*mitmproxy_names.NAMES, *h11_names.NAMES, *python_names.NAMES]
"""All of them have been run on the versions of `versions.TESTED`."""

FAST_PATHS = (Use.RELAY, Use.SELECTOR, Use.HOOKS)


class IncompatibleError(Exception):
    """The balancer does not work with the installed versions. The text says why, and which versions work."""


@dataclass(frozen=True)
class Unsupported:
    """Features that are off with the installed versions, and why."""

    uses: frozenset[Use] = frozenset()
    why: str = ""

    def __contains__(self, use: Use) -> bool:
        return use in self.uses

    def __str__(self) -> str:
        """A line for the log."""
        names = ", ".join(use.value for use in Use if use in self.uses)
        return f"Disabled: {names}; everything else works. {self.why}. Tested: {versions.tested()}."


def check(names: Iterable[Name] = NAMES) -> Unsupported:
    """Check the names and return what is off. Raises IncompatibleError if something indispensable is missing."""
    problems = [(name.use, problem) for name in names if (problem := name.problem()) is not None]
    missing = [problem for use, problem in problems if use is Use.PROXYING]
    if missing:
        raise IncompatibleError(
            f"The balancer does not work with {versions.installed()}: {'; '.join(missing)}. "
            f"It works with {versions.tested()}."
        )
    uses = {use for use, _ in problems}
    reasons = [problem for _, problem in problems]
    if not versions.is_tested():
        uses.update(FAST_PATHS)
        reasons.insert(
            0, f"They use mitmproxy's internals and were not tested with this version ({versions.installed()})"
        )
    if Use.RELAY in uses:
        uses.add(Use.SELECTOR)
    return Unsupported(frozenset(uses), "; ".join(reasons))
