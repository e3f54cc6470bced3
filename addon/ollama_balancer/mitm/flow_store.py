"""Gives each finished request that ran a model to the files of `balancer_store`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mitmproxy import http
from mitmproxy.io import tnetstring
from mitmproxy.utils import human

from ..gateway.context import RequestContext
from ..gateway.masking import is_ours, without_secrets
from ..settings.options import Settings
from ..storage.flow_files import FlowFiles
from ..storage.flow_store import FlowStore
from ..storage.token import Token
from .access_log import log_in_loop, run_in_thread

logger = logging.getLogger(__name__)

OVERHEAD = 16 * 1024
"""Bytes that a flow takes besides its bodies."""


class StoredFlows:
    """Off until `use` names a folder."""

    def __init__(self, token: Callable[[], Token | None]) -> None:
        self._token = token
        self._store: FlowStore[Any] | None = None
        self._logged = ""

    @property
    def on(self) -> bool:
        return self._store is not None

    @property
    def files(self) -> FlowFiles | None:
        return None if self._store is None else self._store.files

    def use(self, settings: Settings) -> None:
        """Write to the folder of the settings, or nowhere."""
        folder = Path(os.path.expanduser(settings.store)) if settings.store else None
        files = self.files
        if files is not None and files.folder == folder:
            files.days, files.size = settings.store_days, settings.store_size
            return
        if (earlier := self.detach()) is not None:
            run_in_thread(earlier.close)
        if folder is not None:
            files = FlowFiles(folder, settings.store_days, settings.store_size)
            self._store = FlowStore(files, self._encode, log_in_loop(logger))
            self._store.start()

    def log(self) -> None:
        """Say what is kept, if that has changed."""
        files = self.files
        if files is None:
            text = "Prompts and answers are no longer kept in files; what is there stays." if self._logged else ""
        else:
            days = "today's alone" if files.days == 1 else f"those of the last {files.days} days"
            size = human.pretty_size(files.size)
            text = f"Prompts and answers are kept in files, in {files.folder}: {days}, at most {size} (balancer_store)."
        if text != self._logged:
            self._logged = text if files is not None else ""
            logger.info("%s", text)

    def detach(self) -> FlowStore[Any] | None:
        """Keep nothing from now on; returns what is to be closed, which takes as long as the disk does."""
        store, self._store = self._store, None
        return store

    def add(self, flow: http.HTTPFlow, context: RequestContext) -> None:
        """The request has ended, and the flow has its record."""
        if self._store is None or context.route is None or not context.route.runs:
            return
        state = flow.get_state()
        state.pop("backup", None)
        state["metadata"] = dict(state["metadata"])
        for part in ("request", "response"):
            if state[part] is not None:
                state[part]["trailers"] = None  # where a client may have credentials
        bodies = (flow.request.raw_content, flow.response and flow.response.raw_content)
        self._store.add(state, OVERHEAD + sum(len(body) for body in bodies if body))

    def _encode(self, state: Any) -> bytes:
        """The record as mitmproxy writes it, without what is secret, even where a client has put it into its prompt."""
        record, token = tnetstring.dumps(state), self._token()
        if token is not None and is_ours(record, token):
            record = tnetstring.dumps(without_secrets(state, token))
        return record
