"""Skips interim answers (100, 102, 103), any number of which may come before the one that counts (RFC 9110, 15.2).

mitmproxy takes the first head that it reads for the whole answer. 101 is no interim answer: it is left for the layer.
"""

import re
from collections.abc import Callable
from typing import Any

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import ErrorCode, Http1Client, ReceiveHttp, ResponseProtocolError

from ..gateway.agent_call import MAX_INTERIM

_INTERIM = re.compile(rb"HTTP/1\.[01] 1(?!01)[0-9]{2}[ \r\n]")

type Read = Callable[[Http1Client, events.Event], layer.CommandGenerator[None]]


def read_past(read_headers: Read, client: Http1Client, event: events.Event) -> layer.CommandGenerator[None]:
    """`read_headers`, of what comes after interim answers."""
    if isinstance(event, events.DataReceived) and client.stream_id is not None and not _skip(client):
        yield commands.CloseConnection(client.conn)
        problem = f"more than {MAX_INTERIM} interim (1xx) answers"
        yield ReceiveHttp(ResponseProtocolError(client.stream_id, problem, ErrorCode.GENERIC_SERVER_ERROR))
        return
    yield from read_headers(client, event)


def _skip(client: Http1Client) -> bool:
    """Take the interim answers off what has come; False if there are too many."""
    attributes: Any = client.__dict__
    while _INTERIM.match(bytes(client.buf)):
        stream_id, count = attributes.get("_interim", (None, 0))
        count = count + 1 if stream_id == client.stream_id else 1
        if client.buf.maybe_extract_lines() is None:
            break  # its end has not come
        attributes["_interim"] = client.stream_id, count
        if count > MAX_INTERIM:
            return False
    return True
