"""Shows saved flows in mitmweb, beside a running balancer, of which it touches nothing."""

from __future__ import annotations

import asyncio
import collections
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mitmproxy import ctx, http
from mitmproxy.addonmanager import Loader

from ..gateway.memory_budget import PART, machine_memory
from ..gateway.tasks import run_in_background
from ..saved_flows import VIEWER_FOLDER
from ..saved_flows.reading import read_flows
from . import patches
from .access_log import log_in_loop
from .compat.names import Patches
from .inspection.web_page import show_comments

logger = logging.getLogger(__name__)


class Viewer:
    """`limit` is how many bytes the bodies of the flows that are shown may have: of more, the newest are shown."""

    name = "ollama-balancer-viewer"

    def __init__(self, limit: int | None = None) -> None:
        self._limit = machine_memory() // PART if limit is None else limit
        self._shown: collections.deque[tuple[http.HTTPFlow, int]] = collections.deque()
        self._bytes = 0
        self._left_out = 0
        self._task: asyncio.Task[None] | None = None
        self._patches = Patches()

    def load(self, loader: Loader) -> None:
        loader.add_option("viewed_files", Sequence[str], [], "The files of flows to show.")
        if not self._patches:
            patches.add_views(self._patches)

    def running(self) -> None:
        show_comments()
        if self._task is None:
            self._task = run_in_background(self.show_all(), "reading of flows")

    def done(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._patches.restore()
        folder = Path(ctx.options.confdir)
        if folder.name.startswith(VIEWER_FOLDER) and folder.parent == Path(tempfile.gettempdir()):
            shutil.rmtree(folder, ignore_errors=True)

    async def show_all(self) -> None:
        """Read the files, and show what is in them."""
        for path in ctx.options.viewed_files:
            flows, count = read_flows(Path(path), log_in_loop(logger)), 0
            # The next one is read in a thread, so that the page answers meanwhile.
            while (flow := await asyncio.to_thread(next, flows, None)) is not None:
                await ctx.master.load_flow(flow)
                self._make_room(flow)
                count += 1
            logger.info("%s: %d requests.", path, count)
        if self._left_out:
            logger.warning("The oldest %d requests are not shown: all would take too much memory.", self._left_out)

    def _make_room(self, flow: http.HTTPFlow) -> None:
        """Take the oldest flows out of the list where the new one is too much."""
        size = len(flow.request.raw_content or b"") + len((flow.response and flow.response.raw_content) or b"")
        self._shown.append((flow, size))
        self._bytes += size
        while self._bytes > self._limit and len(self._shown) > 1:
            oldest, size = self._shown.popleft()
            self._bytes -= size
            self._left_out += 1
            ctx.master.addons.get("view").remove([oldest])
