"""Writes the flows of files in other formats, one after the other, however large the files are."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mitmproxy import http
from mitmproxy.addons.savehar import SaveHar
from mitmproxy.connection import Server

from .reading import read_flows
from .records import balancers_record, jsonl_record, unpack

MAX_SERVERS = 1_000
"""Connections that are remembered: the time to connect belongs to the first request of each."""


class Counts(NamedTuple):
    """Flows that were written; flows that the balancer has no record of; flows that are odd."""

    written: int
    others: int
    odd: int


def export(paths: Iterable[Path], out: BinaryIO, report: Callable[[str], None], *, har: bool = False) -> Counts:
    """Write all flows that went through the balancer as lines of JSON, or as one HAR. OSError: `out` does not take it.

    `report` is told of files that cannot be read to their end.
    """
    others = odd = written = 0
    writer = _Har(out) if har else _Lines(out)
    writer.begin()
    for flow in _all(paths, report):
        record = balancers_record(flow)
        if record is None:
            others += 1
            continue
        try:
            unpack(flow.request)
            unpack(flow.response)
            text = writer.format(flow)
        except Exception:  # mitmproxy takes whatever is in a file for a flow's parts
            odd += 1
            continue
        writer.write(text)
        written += 1
    writer.end()
    return Counts(written, others, odd)


def _all(paths: Iterable[Path], report: Callable[[str], None]) -> Iterator[http.HTTPFlow]:
    for path in paths:
        yield from read_flows(path, report)


class _Lines:
    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def begin(self) -> None:
        pass

    def format(self, flow: http.HTTPFlow) -> bytes:
        record = balancers_record(flow)
        assert record is not None
        return _json(jsonl_record(flow, record))

    def write(self, text: bytes) -> None:
        self._out.write(text + b"\n")

    def end(self) -> None:
        pass


class _Har(_Lines):
    """HAR 1.2 as mitmproxy writes it, with the balancer's record of each request as `_balancer`."""

    def __init__(self, out: BinaryIO) -> None:
        super().__init__(out)
        self._saver = SaveHar()
        self._servers: set[Server] = set()
        self._separator = b""

    def begin(self) -> None:
        log = self._saver.make_har([])["log"]
        del log["entries"]
        self._out.write(b'{"log": ' + _json(log)[:-1] + b', "entries": [')

    def format(self, flow: http.HTTPFlow) -> bytes:
        if len(self._servers) > MAX_SERVERS:
            self._servers.clear()
        entry = self._saver.flow_entry(flow, self._servers)
        return _json(entry | {"comment": flow.comment, "_balancer": balancers_record(flow)})

    def write(self, text: bytes) -> None:
        self._out.write(self._separator + b"\n" + text)
        self._separator = b","

    def end(self) -> None:
        self._out.write(b"\n]}}\n")


def _json(value: object) -> bytes:
    """Without what other programs take for no JSON: NaN is refused, a lone surrogate is written as an escape."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
