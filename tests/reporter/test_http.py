"""Calls over real sockets, to servers that are not trusted."""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import DNSName
from mitmproxy.certs import CertStore

from agent_reporter import http
from agent_reporter.http import Answer, CallError, call
from tests import jumping_loop

from .stubs import free_port

pytestmark = pytest.mark.e2e

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\n"


def says(*pieces: bytes, hang: bool = False) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
        if hang:
            await reader.read()  # until the client goes
        writer.close()

    return serve


def asked(serve: Serve, *, timeout: float = 30.0, limit: int = 1000, content: bytes | None = None) -> Answer:
    async def run() -> Answer:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await call(
                "POST",
                f"http://127.0.0.1:{port}/a/b",
                timeout=timeout,
                limit=limit,
                content=content,
                headers={"X": "y"},
            )

    return jumping_loop.run(run())


@pytest.mark.parametrize(
    "pieces",
    [
        (HEAD + b"Content-Length: 2\r\n\r\nok",),
        (b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"Content-Length: 2\r\n\r\n", b"ok"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",),
        (b"HTTP/1.0 200 OK\r\n\r\nok",),
    ],
)
def test_an_answer_is_read_however_it_is_framed(pieces: tuple[bytes, ...]) -> None:
    assert asked(says(*pieces))[:2] == (200, b"ok")


def test_the_request_is_whole_and_says_what_the_client_wants() -> None:
    seen = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen = await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(3)
        writer.write(HEAD.replace(b"200", b"204") + b"\r\n")
        writer.close()

    assert asked(serve, content=b"abc")[:2] == (204, b"")
    head, _, body = seen.partition(b"\r\n\r\n")
    first, *fields = head.decode().lower().split("\r\n")
    assert first == "post /a/b http/1.1"
    assert {"connection: close", "accept-encoding: identity", "content-length: 3", "x: y"} < set(fields)
    assert body == b"abc"


@pytest.mark.parametrize(
    ("serve", "why"),
    [
        (says(HEAD + b"Content-Length: 5000\r\n\r\n" + b"x" * 5000), "longer than 1000 bytes"),
        (
            says(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"3e9\r\n" + b"x" * 1001 + b"\r\n", hang=True),
            "longer than",
        ),
        (says(HEAD + b"\r\n" + b"x" * 1001, hang=True), "longer than"),
        (says(HEAD + b"Content-Length: 5\r\n\r\nab"), "its answer is not HTTP"),
        (says(), "without an answer|not HTTP"),
        (says(b"SSH-2.0-OpenSSH_9.2p1\r\n"), "its answer is not HTTP"),
        (says(HEAD + b"X: " + b"x" * 200_000 + b"\r\n\r\n", hang=True), "its answer is not HTTP"),
        (says((b"HTTP/1.1 100 Continue\r\n\r\n") * 5), "without an answer|not HTTP"),
    ],
)
def test_what_is_no_whole_answer_of_a_fair_size_is_an_error_that_says_why(serve: Serve, why: str) -> None:
    with pytest.raises(CallError, match=why):
        asked(serve)


def test_the_time_is_that_of_the_whole_call() -> None:
    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            writer.write(b"x" if not writer.is_closing() else b"")
            await asyncio.sleep(0.01)
        writer.close()

    with pytest.raises(CallError, match=r"no whole answer within 5 s|no HTTP"):
        asked(drips, timeout=5.0)
    with pytest.raises(CallError, match=r"no whole answer within 5 s"):
        asked(says(hang=True), timeout=5.0)


def test_compressed_bytes_stay_as_they_are() -> None:
    packed = zlib.compress(b"x" * 100_000)
    assert asked(says(HEAD + b"Content-Encoding: deflate\r\nContent-Length: %d\r\n\r\n%s" % (len(packed), packed)))[
        :2
    ] == (
        200,
        packed,
    )


@pytest.mark.parametrize(
    ("url", "why"),
    [("http://127.0.0.1:{port}/", "connection refused"), ("http://no-such-host.invalid/", "host not found")],
)
def test_a_server_that_is_not_there_is_told_in_the_systems_words(url: str, why: str) -> None:
    with pytest.raises(CallError, match=why):
        asyncio.run(call("GET", url.format(port=free_port()), timeout=30, limit=10))


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CertStore.from_store(tmp_path, "test", 2048)
    entry = store.get_cert("localhost", [DNSName("localhost")], None)  # without a SAN, mitmproxy 12.2 makes none
    key = entry.privatekey.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "cert.pem").write_bytes(entry.cert.to_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    async def run() -> Answer:
        serve = says(HEAD + b"Content-Length: 2\r\n\r\nok")
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            return await call("GET", f"https://localhost:{port}/", timeout=30, limit=10)

    http._tls.cache_clear()
    with pytest.raises(CallError, match=r"TLS: .*certificate"):
        asyncio.run(run())
    http._tls.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "test-ca-cert.pem"))
    assert asyncio.run(run())[:2] == (200, b"ok")
    http._tls.cache_clear()
