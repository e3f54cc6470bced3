"""Reads files of flows, one flow at a time. Nothing in them is trusted."""

import gc
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mitmproxy import http
from mitmproxy.exceptions import FlowReadException
from mitmproxy.io import FlowReader

from ..text import one_line

METADATA_KEY = "balancer"
"""The metadata of a flow that is the balancer's record of it."""

MAX_FLOW = 2 * 1024**3
"""Bytes that one flow may take. mitmproxy would read as many as the file says."""

COLLECTED_BYTES = 64 * 1024 * 1024
"""Bytes after which garbage is collected: a flow from a file refers to itself, and a few may be gigabytes."""


class _Bounded(io.RawIOBase):
    """A file that says that it is damaged where more is asked for than it has."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = os.fstat(file.fileno()).st_size
        self.uncollected = 0

    def peek(self, size: int) -> bytes:
        at = self._file.tell()
        data = self._file.read(size)
        self._file.seek(at)
        return data

    def read(self, size: int = -1) -> bytes:
        if size > MAX_FLOW or (size > 1 and size > self._left):
            raise ValueError("it ends in the middle of a flow")
        data = self._file.read(MAX_FLOW if size < 0 else size)
        self._left -= len(data)
        self.uncollected += len(data)
        return data


def read_flows(path: Path, report: Callable[[str], None]) -> Iterator[http.HTTPFlow]:
    """The HTTP flows of a file of mitmproxy's, as far as it can be read; `report` hears what is wrong with it."""
    count, name = 0, one_line(str(path))
    try:
        with path.open("rb") as file:
            bounded = _Bounded(file)
            for flow in FlowReader(bounded).stream():  # type: ignore[arg-type]
                count += 1
                if isinstance(flow, http.HTTPFlow):
                    yield flow
                del flow
                if bounded.uncollected > COLLECTED_BYTES:
                    bounded.uncollected = 0
                    gc.collect()
    except OSError as e:
        report(f"{name}: cannot be read: {e.strerror or e}")
    except Exception as e:  # on a damaged flow mitmproxy raises what it comes upon
        why = "" if isinstance(e, FlowReadException) else f" ({type(e).__name__})"
        report(
            f"{name}: ends in the middle of a flow, or is damaged there{why}; {count} flows before that were read"
            if count
            else f"{name}: is not a file of mitmproxy flows{why}"
        )
    else:
        if not count:
            report(f"{name}: contains no flows")
