"""Valid input to begin with, and what it is mutated by."""

from __future__ import annotations

import random
from collections.abc import Iterable

from hypothesis import strategies as st

from tests.e2e.test_recordings import ALL, answer_of, body_of

LARGEST = 16 * 1024
"""Bytes of a recording that is used."""

TOKENS = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\x00", b"\x80", b"\xff", b"\xc3\xa9", b" ", b"\t", b":", b";", b",", b'"',
    b"\\", b"[", b"]", b"{", b"}", b"0", b"-1", b"1e999", b"NaN", b"null", b"true", b"\\ud800",
    b"18446744073709551616", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n", b"Connection: close\r\n", b"Connection: content-length\r\n",
    b"Expect: 100-continue\r\n", b"Host: evil.example\r\n", b"Upgrade: websocket\r\n",
    b"X-Balancer-Agent: nobody\r\n", b"Content-Encoding: zstd\r\n", b"Content-Type: text/html\r\n", b"HTTP/1.0",
    b"HTTP/2", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 101 X\r\n\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n",
    b"5;a=b\r\n", b"5\r\nabcde\r\n", b"data: ", b"data: [DONE]\n\n", b"event: x\n", b'{"error":"x"}\n',
    b'"done":true', b"A" * 300,
)  # fmt: skip

REQUESTS = [
    b"%s %s HTTP/1.1\r\n%s\r\n%s"
    % (
        request["method"].encode(),
        request["path"].encode(),
        b"".join(f"{name}: {value}\r\n".encode() for name, value in request["headers"]),
        body_of(request.get("body")),
    )
    for request in (recording["request"] for recording in ALL.values())
    if "method" in request and request["method"] != "CONNECT" and (request.get("body") or {}).get("len", 0) < LARGEST
]
ANSWERS = [
    answer
    for recording in ALL.values()
    if len(answer := answer_of(recording["response"])) < LARGEST and answer.startswith(b"HTTP/1.1 ")
]
REQUESTS = [request for request in REQUESTS if len(request) < LARGEST]
BODIES = [body for request in REQUESTS if (body := request.partition(b"\r\n\r\n")[2]).startswith(b"{")]
STREAMS = [answer for answer in ANSWERS if b"Transfer-Encoding: chunked" in answer]


def head_of(message: bytes) -> bytes:
    return message.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def edited(data: bytes, edits: Iterable[tuple[str, float, int, bytes]]) -> bytes:
    """Each edit: what is done, where (a part of the length), to how many bytes, and with which."""
    for kind, place, size, token in edits:
        at = int(place * len(data))
        match kind:
            case "insert":
                data = data[:at] + token + data[at:]
            case "replace":
                data = data[:at] + token + data[at + len(token) :]
            case "remove":
                data = data[:at] + data[at + size :]
            case "repeat":
                data = data[: at + size] + data[at:]
            case "flip" if data:
                at = min(at, len(data) - 1)
                data = data[:at] + bytes([data[at] ^ (1 << size % 8)]) + data[at + 1 :]
            case "cut":
                data = data[:at]
    return data


KINDS = ("insert", "replace", "remove", "repeat", "flip", "cut")


def mutated(corpus: Iterable[bytes], tokens: tuple[bytes, ...] = TOKENS, most: int = 6) -> st.SearchStrategy[bytes]:
    """One of these with a few edits, or none."""
    edit = st.tuples(
        st.sampled_from(KINDS), st.floats(0, 1), st.integers(0, 64), st.sampled_from(tokens) | st.binary(max_size=8)
    )
    return st.builds(edited, st.sampled_from(list(corpus)), st.lists(edit, max_size=most))


_OFTEN = KINDS[:-1] * 3 + KINDS[-1:]
"""What is cut off is often no more than waited for."""


def mutate(data: bytes, chance: random.Random, most: int = 5) -> bytes:
    """The same by a seed."""
    edits = [
        (chance.choice(_OFTEN), chance.random(), chance.randint(0, 64), chance.choice(TOKENS))
        for _ in range(chance.randint(1, most))
    ]
    return edited(data, edits)


def cut(data: bytes, places: Iterable[float]) -> list[bytes]:
    """In pieces, cut at these parts of its length."""
    at = sorted(int(place * len(data)) for place in places)
    return [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]


CUTS = st.lists(st.floats(0, 1), max_size=8)
