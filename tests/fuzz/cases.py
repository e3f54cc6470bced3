"""What is sent to a real mitmdump: each case is made from a seed and its number, or kept from a case that failed."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

import h2.config
import h2.connection

from tests.fuzz.corpus import ANSWERS, REQUESTS, TOKENS, head_of, mutate

KEPT = Path(__file__).parent / "kept"
"""Inputs that have failed, each in a file SIDE-ANYTHING.bin: they are sent first in every run."""

SIDES = ("http1", "http2", "host", "lists")
"""From a client, over HTTP/1.1 and HTTP/2; from a host, as its answer to a request and to what the balancer asks."""

CONTROL = [
    b"GET /api/agents HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /api/history?minutes=5&after=2026-01-01T00:00:00Z HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /dashboard/data?sort=cpu&page=2&filter=a HTTP/1.1\r\nHost: x\r\n\r\n",
    b'POST /api/agents HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{"name":"x"}',
    b'POST /api/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n12\r\n{"model":"tiny-a"}\r\n0\r\n\r\n',
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3,
    b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
]

FRAMES = (
    b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08", b"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678",
    b"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00", b"\x00\x00\x00\x04\x01\x00\x00\x00\x00",
    b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00", b"\x00\x00\x00\x09\x04\x00\x00\x00\x01",
    b"\x00\x00\x04\x08\x00\x00\x00\x00\x01\x7f\xff\xff\xff", b"\x00\x00\x00\x00\x01\x00\x00\x00\x01",
    b"\x00\x00\x05\x02\x00\x00\x00\x00\x01\x00\x00\x00\x01\x10", b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
)  # fmt: skip

ODD_FIELDS = (
    None, (b"x-a", b"\x80"), (b"connection", b"close"), (b"transfer-encoding", b"chunked"), (b"content-length", b"5"),
    (b"content-length", b"-1"), (b":authority", b"evil.example"), (b"host", b"evil.example"), (b":path", b"/api/tags"),
    (b"te", b"gzip"), (b"cookie", b"a=b"), (b"x-balancer-agent", b"nobody"), (b"content-encoding", b"zstd"),
    (b":method", b"CONNECT"), (b"expect", b"100-continue"), (b"upgrade", b"websocket"), (b":status", b"200"),
)  # fmt: skip
"""None: one of tokens."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

LISTS = [
    b'{"models":[{"name":"tiny-a:latest","model":"tiny-a:latest","size":1,"digest":"ab","details":{"family":"x"}}]}',
    b'{"models":[{"name":"m","model":"m","size_vram":5,"expires_at":"2026-01-01T00:00:00Z","context_length":4096}]}',
    b'{"version":"0.33.0"}',
]

_LENGTH = re.compile(rb"content-length: *\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    name: str
    side: str
    pieces: tuple[bytes, ...]
    closes: bool = True
    """Whether a host closes the connection after its answer."""

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


def _http2(chance: random.Random) -> bytes:
    """Some requests of one connection."""
    config = h2.config.H2Configuration(
        client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding=None
    )
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    for _ in range(chance.randint(1, 3)):
        head, _, body = chance.choice(REQUESTS).partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        method, path, *_ = line.split(b" ")
        headers: list[tuple[bytes, bytes]] = [(b":method", method), (b":path", path)]
        headers += [(b":scheme", b"https"), (b":authority", b"x")]
        for field in lines:
            name, _, value = field.partition(b": ")
            if name.lower() not in (b"host", b"connection", b"transfer-encoding", b"expect"):
                headers.append((name.lower(), value))
        if chance.random() < 0.3:
            odd = chance.choice(ODD_FIELDS)
            headers.insert(chance.randrange(len(headers) + 1), odd or (chance.choice(TOKENS), chance.choice(TOKENS)))
        stream = connection.get_next_available_stream_id()
        connection.send_headers(stream, headers, end_stream=not body)
        if body:
            connection.send_data(stream, body[:16_000], end_stream=chance.random() < 0.9)
        if chance.random() < 0.2:
            connection.reset_stream(stream)
    return bytes(connection.data_to_send())


def _frames(data: bytes) -> list[int]:
    """Where the frames of a connection begin, and where the last one ends."""
    begins = [len(_PREFACE)]
    while begins[-1] < len(data):
        begins.append(begins[-1] + 9 + int.from_bytes(data[begins[-1] : begins[-1] + 3]))
    return begins


def _framed(body: bytes, chance: random.Random) -> bytes:
    length = len(body) + (chance.choice((-1, 1)) if chance.random() < 0.1 else 0)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (length, body)


def _data(side: str, chance: random.Random) -> bytes:
    match side:
        case "http1":
            request = chance.choice(CONTROL) if chance.random() < 0.2 else chance.choice(REQUESTS)
            head, body = head_of(request), request[len(head_of(request)) :]
            match chance.randrange(4):
                case 0:
                    data = mutate(request, chance)
                case 1:
                    data = mutate(head.removesuffix(b"\r\n\r\n"), chance, 2) + b"\r\n\r\n" + body
                case _:  # what nobody could read if its length were wrong
                    body = mutate(body, chance)
                    data = _LENGTH.sub(b"Content-Length: %d" % len(body), head) + body
            return data + (chance.choice(REQUESTS) if chance.random() < 0.1 else b"")
        case "http2":
            data = _http2(chance)
            match chance.randrange(3):
                case 0:
                    at = chance.randint(len(_PREFACE), len(data))
                    return data[:at] + mutate(data[at:], chance, 2)
                case 1:
                    at = chance.choice(_frames(data))
                    return data[:at] + chance.choice(FRAMES) + data[at:]
                case _:
                    return data
        case "host":
            answer = chance.choice(ANSWERS)
            if chance.random() < 0.3:  # the body alone, as heads take most edits otherwise
                head = head_of(answer)
                return head + mutate(answer[len(head) :], chance)
            return mutate(answer, chance)
        case _:
            body = chance.choice(LISTS)
            return (
                mutate(_framed(body, chance), chance)
                if chance.random() < 0.5
                else _framed(mutate(body, chance), chance)
            )


def case(seed: int, number: int) -> Case:
    chance = random.Random(f"{seed} {number}")
    [side] = chance.choices(SIDES, (8, 3, 8, 1))
    data = _data(side, chance)
    at = sorted(chance.randint(0, len(data)) for _ in range(chance.choice((0, 0, 1, 3))))
    pieces = tuple(data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True))
    return Case(str(number), side, pieces, closes=chance.random() < 0.7)


def kept() -> list[Case]:
    cases = []
    for path in sorted(KEPT.glob("*.bin")):
        side = path.stem.partition("-")[0]
        for closes in (True, False) if side in ("host", "lists") else (True,):
            cases.append(Case(path.stem, side, (path.read_bytes(),), closes=closes))
    return cases


def shown(failed: Case) -> str:
    """As it can be kept."""
    return f"{failed.side} case {failed.name}, to be kept as {KEPT.name}/{failed.side}-NAME.bin:\n{failed.data!r}"
