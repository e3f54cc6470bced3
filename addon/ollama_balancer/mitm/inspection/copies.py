"""Replays send a copy of the flow, so that the first answer is kept."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from mitmproxy import ctx, flow, http

from .annotations import COMPARISON_KEY, METADATA_KEY
from .marks import MARK_KEY

logger = logging.getLogger(__name__)


def copy_of(prompt: http.HTTPFlow) -> http.HTTPFlow:
    """The request as a flow of its own, without what is known of the first one's way."""
    copy: http.HTTPFlow = prompt.copy()
    copy.intercepted = False
    copy.comment = copy.marked = ""
    for key in (METADATA_KEY, COMPARISON_KEY, MARK_KEY):
        copy.metadata.pop(key, None)
    copy.response = copy.error = None
    return copy


class ReplayedCopies:
    """mitmproxy's command `replay.client`, which its pages use as well, as long as it is `install`ed."""

    def __init__(self) -> None:
        self._command: Any = None
        self._original: Callable[[Sequence[flow.Flow]], None] | None = None

    def install(self) -> None:
        command = ctx.master.commands.commands.get("replay.client")
        if self._command is None and command is not None:
            self._command, self._original = command, command.func
            command.func = self._replay

    def remove(self) -> None:
        if self._command is not None:
            self._command.func = self._original
            self._command = None

    def _replay(self, flows: Sequence[flow.Flow]) -> None:
        assert self._original is not None
        playback, view = ctx.master.addons.get("clientplayback"), ctx.master.addons.get("view")
        copies = []
        for each in flows:
            problem = playback.check(each)
            if problem:
                logger.warning("%s", problem)
            elif isinstance(each, http.HTTPFlow):
                copies.append(copy_of(each))
        if copies and view is not None:
            view.add(copies)
        self._original(copies)
