"""Reads the heads of requests and answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import h11
from mitmproxy.net.http import http1
from mitmproxy.net.http.validate import validate_headers

from ollama_balancer.core.address import Address
from ollama_balancer.gateway.headers import ANSWER_TYPES, NOT_FOR_CLIENTS, for_client
from ollama_balancer.mitm import patches
from ollama_balancer.mitm.head_limits import MAX_FIELDS, MAX_HEAD, LimitedBuffer
from ollama_balancer.mitm.headers import request_to_agent
from tests.fuzz.corpus import cut


def _lines(data: bytes, places: list[float]) -> list[bytes] | None:
    """The lines of the head that these bytes begin with, if it is whole and within the limits."""
    buffer = LimitedBuffer()
    for piece in cut(data, places):
        buffer.__iadd__(piece)
        try:
            lines = buffer.maybe_extract_lines()
        except h11.RemoteProtocolError:
            return None
        assert len(buffer) <= MAX_HEAD
        if lines is not None:
            assert len(lines) <= MAX_FIELDS + 1
            return [bytes(line) for line in lines]
    return None


def _by_h11(data: bytes, role: type[h11.SERVER] | type[h11.CLIENT]) -> Any:
    """What h11 makes of the head; None: nothing."""
    connection = h11.Connection(role)
    if role is h11.CLIENT:
        connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    return event if isinstance(event, (h11.Request, h11.Response)) else None


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value.strip(b" \t")) for name, value in headers]


def _is_one_head(head: bytes) -> bool:
    return (
        head.count(b"\r\n\r\n") == 1
        and head.endswith(b"\r\n\r\n")
        and b"\n\n" not in head
        and b"\n" not in re.sub(b"\r\n", b"", head)
    )


def request_heads(data: bytes, places: list[float]) -> None:
    lines = _lines(data, places)
    if not lines:
        return
    try:
        request = patches._read_request_head(lines)
        validate_headers(request)
        size = http1.expected_http_body_size(request)
    except (ValueError, h11.RemoteProtocolError):
        return
    request.data.content = b"" if size == 0 else b"x"
    expected = _by_h11(data, h11.SERVER)
    if expected is not None:
        assert request.data.method == expected.method
        assert _fields(request.headers.fields) == _fields(expected.headers)
    for stream in (False, True):
        request.stream = stream
        head = http1.assemble_request_head(request_to_agent(request, "1.1 x", (), Address("10.0.0.1", 11434)))
        assert _is_one_head(head)
        names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:-2]]
        assert names.count(b"host") == 1
        assert not {b"connection", b"upgrade", b"te", b"trailer", b"origin", b"x-balancer-agent"} & set(names)
        assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1 + stream
        got = _by_h11(head, h11.SERVER)
        if got is not None and not stream:
            lengths = [value for name, value in got.headers if name == b"content-length"]
            assert lengths in ([], [b"%d" % len(request.data.content)])


def answer_heads(data: bytes, places: list[float]) -> None:
    lines = _lines(data, places)
    if not lines:
        return
    try:
        response = patches._read_response_head(lines)
        validate_headers(response)
    except (ValueError, h11.RemoteProtocolError):
        return
    expected = _by_h11(data, h11.CLIENT)
    if expected is not None:
        assert response.status_code == expected.status_code
        assert _fields(response.headers.fields) == _fields(expected.headers)
    fields = _fields(for_client(response.headers.fields, 1, "gpu-1", own=False))
    names = {name.decode("latin-1") for name, _ in fields}
    assert not (NOT_FOR_CLIENTS - {"connection", "content-security-policy", "x-content-type-options"}) & names
    assert [value for name, value in fields if name == b"content-security-policy"] == [b"sandbox"]
    assert [value for name, value in fields if name == b"x-content-type-options"] == [b"nosniff"]
    types = [value.partition(b";")[0].strip().lower() for name, value in fields if name == b"content-type"]
    assert set(types) <= ANSWER_TYPES
    assert _is_one_head(http1.assemble_response_head(response))
