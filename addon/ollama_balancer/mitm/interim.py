"""Skips interim answers (100, 102, 103), any number of which may come before the one that counts (RFC 9110, 15.2).

mitmproxy takes the first head that it reads for the whole answer. 101 is no interim answer: it is left for the layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import ErrorCode, ResponseProtocolError, _http1
from mitmproxy.proxy.layers.http._base import ReceiveHttp

MOST = 100
"""Interim answers to one request; a host that sends more says nothing."""

_INTERIM = re.compile(rb"HTTP/1\.[01] 1(?!01)[0-9]{2}[ \r\n]")

_Read = Callable[[_http1.Http1Client, events.ConnectionEvent], layer.CommandGenerator[None]]


def skip_answers() -> None:
    """Have mitmproxy's reader of answers skip them. To be called once."""
    client: Any = _http1.Http1Client
    client.read_headers = _skipping(client.read_headers)


def _skipping(read_headers: _Read) -> _Read:
    def read(self: _http1.Http1Client, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived) and self.stream_id is not None and not _skip(self):
            yield commands.CloseConnection(self.conn)
            problem = f"more than {MOST} interim answers"
            yield ReceiveHttp(ResponseProtocolError(self.stream_id, problem, ErrorCode.GENERIC_SERVER_ERROR))
            return
        yield from read_headers(self, event)

    return read


def _skip(client: _http1.Http1Client) -> bool:
    """Take the interim answers off what has come; False if there are too many."""
    known: Any = client.__dict__
    while _INTERIM.match(bytes(client.buf)):
        stream_id, seen = known.get("_interim", (None, 0))
        seen = seen + 1 if stream_id == client.stream_id else 1
        if client.buf.maybe_extract_lines() is None:
            break  # its end has not come
        known["_interim"] = client.stream_id, seen
        if seen > MOST:
            return False
    return True
