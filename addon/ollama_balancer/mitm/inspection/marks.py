"""Tells the balancer's own marks from those of a user.

A flow where something went wrong is marked (`flow.marked`) so that it stands out in the list. mitmproxy's `~marked`,
`@marked` and `@unmarked`, and the commands that clear and toggle marks, are restricted to marks set by a user. `~marker
EMOJI` finds the others.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mitmproxy import ctx, flow
from mitmproxy.hooks import UpdateHook

from ..compat.mitmproxy_names import MARKED, can_filter_view, filter_view
from ..compat.names import Patches

MARK_KEY = "balancer_mark"
"""The metadata of a flow that the balancer has marked: with what."""

DEFAULT_MARK = ":default:"
"""A person's, where no other is chosen."""


def set_mark(marked: flow.Flow, marker: str) -> None:
    """Mark the flow, or take the balancer's own mark from it if that is empty. A mark that a person set stays.

    A mark that a person took away comes back only as another one.
    """
    before = marked.metadata.get(MARK_KEY, "")
    if marked.marked != before and (marked.marked or marker == before):
        return
    marked.marked = marker
    if marker or before:
        marked.metadata[MARK_KEY] = marker


def is_user_mark(each: flow.Flow) -> bool:
    return bool(each.marked) and each.marked != each.metadata.get(MARK_KEY)


class UserMarks:
    """mitmproxy's filters and commands about marks, as long as it is `install`ed."""

    def __init__(self) -> None:
        self._patches = Patches()

    def install(self) -> None:
        """Where mitmproxy has no such filter or command, nothing is changed."""
        view = ctx.master.addons.get("view")
        if self._patches or view is None:
            return
        if MARKED.problem() is None:
            self._patches.replace(MARKED, lambda _, each: is_user_mark(each))
        resolve = self._replace("view.flows.resolve", lambda spec: resolve(_SPECIFICATIONS.get(spec, spec)))
        if can_filter_view(view):
            self._replace("view.clear_unmarked", lambda: filter_view(view, is_user_mark))
        self._replace("flow.mark.toggle", _toggle)

    def remove(self) -> None:
        self._patches.restore()

    def _replace(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Have the command do that; returns what it did. Its arguments and its help stay."""
        command: Any = ctx.master.commands.commands.get(name)
        if command is None:
            return function
        original: Callable[..., Any] = command.func
        self._patches.set(command, "func", function)
        return original


_SPECIFICATIONS = {"@marked": "~marked", "@unmarked": "!~marked"}


def _toggle(flows: Sequence[flow.Flow]) -> None:
    """A person's mark takes the place of the balancer's, which is there again without it."""
    for each in flows:
        each.marked = each.metadata.get(MARK_KEY, "") if is_user_mark(each) else DEFAULT_MARK
    ctx.master.addons.trigger(UpdateHook(list(flows)))
