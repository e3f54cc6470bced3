"""What mitmproxy's terminal and event log show: a line for each request, and nothing of connections."""

from __future__ import annotations

import io
import logging
import os
import shutil

from mitmproxy import ctx
from mitmproxy.log import ALERT

from ..core.stats import RequestSummary
from ..gateway.context import RequestContext
from ..gateway.request_lines import RequestLine
from ..text import printable
from .balancer import Balancer
from .compat.mitmproxy_names import TerminalHandler, terminal_handlers
from .compat.names import Patches
from .request_columns import BOLD, DIM, GAP, MAGENTA, RED, Columns, painted, plain

logger = logging.getLogger(__name__)

CONNECTIONS = "mitmproxy.proxy.server"
"""The logger of mitmproxy that tells of each connection."""

CONNECTION_WORDS = (
    "client connect",
    "client disconnect",
    "server connect",
    "server disconnect",
    "error establishing server connection",
    "Closing connection due to inactivity",
    "Streaming response from",
)
"""How those of its records begin that are hidden. Others tell of clients that break the rules."""

CODES = {logging.ERROR: (BOLD, RED), logging.WARNING: (MAGENTA,), ALERT: (BOLD,)}

_VERBOSITIES = ("termlog_verbosity", "console_eventlog_verbosity")


class Terminal:
    """With the log's level at debug (-v) everything is as mitmproxy has it, beside the lines."""

    name = "ollama-balancer-terminal"

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer
        self._patches = Patches()

    def configure(self, updated: set[str]) -> None:
        if self.balancer.unsupported is None:
            return
        self.attach()

    def attach(self) -> None:
        """Have the terminal show what the options say."""
        self.detach()
        options, flows = ctx.options, self.balancer.flows
        verbose = any(name in options and getattr(options, name) == "debug" for name in _VERBOSITIES)
        detail = options.flow_detail if "flow_detail" in options else None
        filtered = "dumper_filter" in options and bool(options.dumper_filter)
        handlers = terminal_handlers()
        kept = ctx.master.addons.get("eventstore") is not None
        level = min((handler.level for handler in handlers), default=logging.CRITICAL)
        logger.setLevel(logging.NOTSET if kept else level)
        shown = kept or (detail != 0 and level <= logging.WARNING)
        self.balancer.accounting.show = self._show if shown else None
        flows.has_own_lines = detail == 1 and not verbose and not filtered
        if verbose:
            return
        connections = logging.getLogger(CONNECTIONS)
        connections.addFilter(_is_no_connection)
        self._patches.on_restore(lambda: connections.removeFilter(_is_no_connection))
        for handler in handlers:
            if handler.formatter is not None and not isinstance(handler.formatter, PlainFormatter):
                self._format(handler)

    def detach(self) -> None:
        """Have the terminal show everything as mitmproxy does."""
        self._patches.restore()
        self.balancer.accounting.show = None
        self.balancer.flows.has_own_lines = False
        logger.setLevel(logging.NOTSET)

    def _format(self, handler: TerminalHandler) -> None:
        file = handler.file
        if isinstance(file, io.TextIOWrapper):
            # mitmproxy writes out what it has printed with each flow, of which there are none.
            file.reconfigure(line_buffering=True)
        before = handler.formatter
        colour = handler.has_vt_codes and not os.environ.get("NO_COLOR")
        handler.setFormatter(PlainFormatter(colour=colour, is_terminal=file.isatty()))
        self._patches.on_restore(lambda: handler.setFormatter(before))

    def _show(self, context: RequestContext, summary: RequestSummary) -> None:
        if context.caller.client_id in self.balancer.blocked_clients:
            return  # the log names it once
        line = RequestLine(context, summary)
        logger.log(logging.WARNING if line.is_trouble else logging.INFO, line)


def _is_no_connection(record: logging.LogRecord) -> bool:
    return record.levelno != logging.INFO or not str(record.msg).startswith(CONNECTION_WORDS)


class PlainFormatter(logging.Formatter):
    """The time to the second, and what there is to say."""

    default_time_format = "%H:%M:%S"
    default_msec_format = None

    def __init__(self, *, colour: bool, is_terminal: bool) -> None:
        super().__init__()
        self._colour = colour
        self._is_terminal = is_terminal
        self._columns = Columns()

    def format(self, record: logging.LogRecord) -> str:
        time = self.formatTime(record)
        if isinstance(record.msg, RequestLine):
            width = shutil.get_terminal_size().columns if self._is_terminal else None
            return self._columns.render(time, record.msg, width, colour=self._colour)
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        paint = painted if self._colour else plain
        return paint(time, DIM) + GAP + paint(printable(text), *CODES.get(record.levelno, ()))
