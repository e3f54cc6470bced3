"""What clients and hosts may send to hold up others or have memory taken: inputs for tests and benches.stalls."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import h2.settings
import httpx

from tests.e2e.clients import Http2Client
from tests.e2e.harness import TOKEN, report
from tests.e2e.hostile_host import MIB, STREAMS, WHOLE, many
from tests.e2e.web import Web

PATIENCE = 30.0
"""Seconds after which an input is given up."""

HISTORY_ROWS = 60
"""Of each of the 1,440 minutes."""


@dataclass
class Site:
    """A balancer that runs, and its host."""

    port: int
    web_port: int
    host_ports: tuple[int, int]
    """The second one lists its models in 8 MiB."""
    sent: int = 0
    """Bytes that were taken from clients."""

    @property
    def http(self) -> httpx.Client:
        authority = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=authority, timeout=PATIENCE)


@dataclass(frozen=True)
class Input:
    kind: str
    act: Callable[[Site], bytes]
    """Sends it, and gives the first bytes that come back."""
    prepare: Callable[[Site], None] = lambda _: None
    """What comes before, and is not measured."""
    write: Callable[[Path], None] = lambda _: None
    """What is in mitmproxy's confdir at the start."""
    tool: str = "mitmdump"


def send(site: Site, data: Iterable[bytes]) -> bytes:
    """Send it as far as it is taken; the first bytes that come back. The answer is read to its end if that shows."""
    first = b""
    deadline = time.monotonic() + PATIENCE
    with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE) as s, contextlib.suppress(OSError):
        with contextlib.suppress(ConnectionError):
            for piece in data:
                s.sendall(piece)
                site.sent += len(piece)
        while b"\r\n\r\n" not in first and (piece := s.recv(65_536)):
            first += piece
        head, _, got = first.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        missing = int(length[1]) - len(got) if length else 0
        while missing > 0 and (piece := s.recv(65_536)):
            missing -= len(piece)
        s.settimeout(1)
        while not length and not (b"\r\n0\r\n\r\n" in got or got.endswith(b"}\n")) and time.monotonic() < deadline:
            if not (got := s.recv(65_536)):
                break
    return first


def _sent(make: Callable[[], bytes]) -> Callable[[Site], bytes]:
    def act(site: Site) -> bytes:
        data = make()
        return send(site, (data[at : at + MIB] for at in range(0, len(data), MIB)))

    return act


def _head(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([first, b"Host: x", *lines, b"", b""])


def _post(path: str, body: bytes, *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


def _chat(content: bytes) -> Callable[[], bytes]:
    return lambda: _post("/api/chat", b'{"x":' + content + b',"model":"m","messages":[]}')


def _prompt(prompt: str) -> Callable[[], bytes]:
    return lambda: _post("/api/generate", json.dumps({"model": "m", "prompt": prompt}).encode())


def _report(models: bytes) -> Callable[[], bytes]:
    def made() -> bytes:
        body = json.dumps(report()).encode()
        content = body[:-1] + b',"models":' + models + b"}"
        return _post("/api/agents/one/metrics", content, f"Authorization: Bearer {TOKEN}")

    return made


def _get(path: bytes, *, host: bytes) -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (path, host)


def _registration(body: dict[str, str]) -> Callable[[], bytes]:
    return lambda: _post("/api/agents", json.dumps(body).encode(), f"Authorization: Bearer {TOKEN}")


def _dated(timestamp: str) -> Callable[[], bytes]:
    body = json.dumps(report(timestamp=timestamp)).encode()
    return lambda: _post("/api/agents/one/metrics", body, f"Authorization: Bearer {TOKEN}")


def _chunks(unit: bytes, count: int, end: bytes = b"0\r\n\r\n") -> bytes:
    return _head(b"Transfer-Encoding: chunked", first=b"POST /api/chat HTTP/1.1") + unit * count + end


def _entries(count: int) -> bytes:
    return b"[" + b",".join([b'{"name":"m"}', *(b'{"name":"m%d"}' % n for n in range(1, count))]) + b"]"


def _endless(begin: bytes, count: int = 100) -> Callable[[Site], bytes]:
    """Bytes of a line that has no end, in MiB."""
    return lambda site: send(site, iter([begin, *[b"x" * MIB] * count]))


def _ahead(request: bytes, count: int) -> Callable[[Site], bytes]:
    """So many requests in one write, of which the last one ends the connection."""

    def act(site: Site) -> bytes:
        data = request * (count - 1) + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE) as s:
            s.sendall(data)
            site.sent += len(data)
            first = piece = s.recv(65_536)
            while piece:
                piece = s.recv(65_536)
        return first

    return act


def _thousand_agents(site: Site) -> None:
    with site.http as http:
        for number in range(1000):
            url = f"http://127.0.{1 + number // 250}.{1 + number % 250}:{site.host_ports[0]}"
            http.post("/api/agents", json={"name": f"agent-{number}", "url": url}).raise_for_status()
    time.sleep(3)  # while they are probed


def _without_window(site: Site) -> bytes:
    client = Http2Client(site)
    client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    for _ in range(4):
        client.send("/api/generate", {"model": "m", "prompt": "fast"})
    time.sleep(4)  # while it is held up
    client.close()
    return b""


def _http2_flood(frames: Callable[[Http2Client], None]) -> Callable[[Site], bytes]:
    def act(site: Site) -> bytes:
        client = Http2Client(site)
        for _ in range(20_000):
            frames(client)
        data = client.connection.data_to_send()
        with contextlib.suppress(OSError, AssertionError):
            client.socket.sendall(data)
            client.socket.settimeout(3)
            while True:
                client.events()
        site.sent += len(data)
        client.close()
        return b""

    return act


def _reset(client: Http2Client) -> None:
    stream = client.connection.get_next_available_stream_id()
    head = [(":method", "GET"), (":path", "/api/version"), (":scheme", "https"), (":authority", "x")]
    client.connection.send_headers(stream, head, end_stream=True)
    client.connection.reset_stream(stream)


def _setting(client: Http2Client) -> None:
    client.connection.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 100})


def _aborted_uploads(site: Site) -> bytes:
    head = b"POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (100 * MIB)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE) as s:
            s.sendall(head)
            for _ in range(99):
                s.sendall(b"x" * MIB)
                site.sent += MIB
    return b""


def _history(confdir: Path) -> None:
    now = int(time.time() // 60)
    with (confdir / "ollama-balancer-history.jsonl").open("w") as file:
        for minute in range(now - 1430, now):
            rows = [[f"agent-{n}", "llama3.2:latest", [n + 1.5] * 11] for n in range(HISTORY_ROWS)]
            file.write(json.dumps({"minute": minute, "rows": rows}) + "\n")


def _history_restored(site: Site) -> None:
    """The newest minutes are read last."""
    with site.http as http:
        while len(http.get("/api/history?minutes=10").json()["minutes"]) < 5:
            time.sleep(0.2)


def _unread_history(site: Site) -> bytes:
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            s = stack.enter_context(socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE))
            s.sendall(b"GET /api/history?minutes=1440 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(8)  # while they are held up
        return s.recv(100)


def _large_listing(site: Site) -> bytes:
    with site.http as http:
        url = f"http://127.0.0.1:{site.host_ports[1]}"
        status = http.post("/api/agents", json={"name": "large", "url": url}).status_code
        time.sleep(5)  # while it is listed
        http.delete("/api/agents/large")  # its models are not known, so that it would be asked for any
    return b"HTTP/1.1 %d" % status


def bomb() -> bytes:
    """A gzip body of some 390 kB that unpacks into 400 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([packer.compress(bytes(1_000_000)) for _ in range(400)]) + packer.flush()


def _leave_bomb(site: Site) -> None:
    send(site, iter([_post("/api/chat", bomb(), "Content-Encoding: gzip", "Content-Type: application/json")]))


def _seen(how: Callable[[Web, str], object]) -> Callable[[Site], bytes]:
    def act(site: Site) -> bytes:
        web = Web(site.web_port)
        web.http.timeout = httpx.Timeout(PATIENCE)
        how(web, web.flows("/api/chat")[0]["id"])
        web.http.close()
        return b""

    return act


def _all_of(kind: str, makes: dict[str, Callable[[], bytes]]) -> dict[str, Input]:
    return {name: Input(kind, _sent(make)) for name, make in makes.items()}


INPUTS: dict[str, Input] = {
    **_all_of(
        "heads",
        {
            "path of 10 MB": lambda: _head(first=b"GET /" + b"a" * 10_000_000 + b" HTTP/1.1"),
            "400,000 folded lines": lambda: _head(b"x: y", *[b" z"] * 400_000),
            "340,000 via": lambda: _head(*[b"via: 1.1 x"] * 340_000),
            "1,000 via of 1 kB": lambda: _head(*[b"via: " + b"x" * 1000] * 998),
            "authorization of 32 MiB": lambda: _head(b"Authorization: Bearer " + b"a b " * (8 * MIB)),
            "authorization of 1 MiB": lambda: _head(b"Authorization: Bearer " + b"a b " * (MIB // 4 - 100)),
            "host of 50,000 é": lambda: "GET / HTTP/1.1\r\nHost: {}\r\n\r\n".format("é" * 50_000).encode(),
            "query of 60 kB": lambda: _head(first=b"GET /dashboard/data?" + b"a&" * 30_000 + b" HTTP/1.1"),
            "query of 2 MB": lambda: _head(first=b"GET /dashboard/data?" + b"a&" * 1_000_000 + b" HTTP/1.1"),
            "400,000 trailers": lambda: _chunks(b"1\r\n{\r\n", 1, b"0\r\n" + b"x: y\r\n" * 400_000 + b"\r\n"),
            "host's 300,000 fields": _prompt("large head"),
            "host's field of 100 MiB": _prompt("endless head"),
        },
    ),
    "field of 100 MiB": Input("heads", _endless(b"GET / HTTP/1.1\r\nHost: x\r\nx: ")),
    "chunk line of 100 MiB": Input("heads", _endless(_chunks(b"1;", 1, b""))),
    "400 requests ahead": Input("sent ahead", _ahead(_head(), 400)),
    "240 lists of 1,000 agents ahead": Input(
        "sent ahead", _ahead(_head(first=b"GET /api/agents HTTP/1.1"), 240), _thousand_agents
    ),
    "no window, a fast host, 4 s": Input("HTTP/2", _without_window),
    "20,000 resets": Input("HTTP/2", _http2_flood(_reset)),
    "20,000 settings": Input("HTTP/2", _http2_flood(_setting)),
    "20,000 pings": Input("HTTP/2", _http2_flood(lambda client: client.connection.ping(b"x" * 8))),
    "5 aborted uploads of 100 MB": Input("memory", _aborted_uploads),
    "10 unread days of history": Input("memory", _unread_history, _history_restored, _history),
    "list of 8 MiB of unknown fields": Input("memory", _large_listing),
    **_all_of(
        "memory",
        {
            "6 MB of chunks of one byte": lambda: _chunks(b"1\r\nx\r\n", 1_000_000),
            "host's 6 MB of chunks of one byte": _prompt("chunks of one byte"),
            "pull of 20 MiB of blank lines": lambda: _post("/api/pull", b'{"model":"blank lines"}'),
            "pull of 20 MiB of empty objects": lambda: _post("/api/pull", b'{"model":"empty objects"}'),
            "pull of chunks of one byte": lambda: _post("/api/pull", b'{"model":"chunks of one byte"}'),
        },
    ),
    "400 MB in 390 kB, opened": Input(
        "viewing", _seen(lambda web, flow: web.view(flow, "request")), _leave_bomb, tool="mitmweb"
    ),
    "400 MB in 390 kB, searched": Input(
        "viewing", _seen(lambda web, _: web.command("view.filter.set", "~b hello")), _leave_bomb, tool="mitmweb"
    ),
    **_all_of(
        "bodies",
        {
            "body of arrays, 60 kB": _chat(many(b"[],", 60_000)),
            "body of arrays, 100 MiB": _chat(many(b"[],", 100 * MIB)),
            "body of numbers, 100 MiB": _chat(many(b"1,", 100 * MIB)),
            "body of short strings, 100 MiB": _chat(many(b'"a",', 100 * MIB)),
            "body of escapes, 100 MiB": _chat(b'"' + b'\\"' * (50 * MIB) + b'"'),
            "message of escapes, 100 MiB": lambda: _post(
                "/api/chat", b'{"model":"m","messages":[{"role":"user","content":"' + b'\\"' * (50 * MIB) + b'"}]}'
            ),
            "body of blanks, 100 MiB": _chat(b" " * (100 * MIB) + b"1"),
            "body of one text, 100 MiB": _chat(b'"' + b"x" * (100 * MIB) + b'"'),
            "deep body": _chat(b"[" * 9_000 + b"]" * 9_000),
            "unknown model, objects of 1 MiB": lambda: _post(
                "/api/chat", b'{"model":"nope","x":' + many(b"{},", MIB) + b"}"
            ),
        },
    ),
    **_all_of(
        "reports",
        {
            "report of 100,000 entries": _report(b'[{"name":"a"}' + b',{"name":"a"}' * 70_000 + b"]"),
            "report of 2,500 models": _report(_entries(2_500)),
            "report of arrays": _report(b'[{"name":"a","x":' + many(b"[],", 900_000) + b"}]"),
            "report of no models": _report(b"[[]" + b",[]" * 2_400 + b"]"),
        },
    ),
    **_all_of(
        "strange",
        {
            "a host's web page": _prompt("web page"),
            "a host's escapes": _prompt("escapes"),
            "a host's status of 1000": _prompt("odd status"),
            "a service worker": lambda: _head(b"Service-Worker: script"),
            "another's name as host": lambda: _get(b"/api/agents", host=b"evil.example"),
            "mitmproxy's own page": lambda: _get(b"/", host=b"mitm.it"),
            "method that is no text": lambda: _head(first=b"\xff\xfe / HTTP/1.1"),
            "path that is no text": lambda: _head(first=b"GET /\xff\x9b HTTP/1.1"),
            "NUL in a field": lambda: _head(b"x: a\0b"),
            "bare CR in a field": lambda: _head(b"x: a\rb: c"),
            "key in a query": lambda: _head(first=b"GET /api/version?api_key=" + b"k" * 60_000 + b" HTTP/1.1"),
            "registration of a static name": _registration({"name": "one", "url": "http://evil"}),
            "report dated 9999": _dated("9999-01-01T00:00:00Z"),
            "wrong token": lambda: _post("/api/agents/one/drain", b"", "Authorization: Bearer wrong"),
        },
    ),
    **_all_of(
        "answers",
        {f"stream of {name}" if "event" not in name else name: _prompt(name) for name in STREAMS}
        | {name: _prompt(name) for name in WHOLE},
    ),
}
"""By name."""
