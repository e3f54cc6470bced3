"""What is too large is refused while it comes, in JSON, and does not hold up or harm anybody else."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_reporter.limits import MAX_BODY_BYTES
from ollama_balancer.mitm.connections import MAX_BODY
from tests.e2e.harness import TOKEN, Hosts, Proxy, RawHost, running_proxy, wait_until

TAGS = b'{"models":[{"name":"m"}]}'


def exchange(proxy: Proxy, data: bytes) -> bytes:
    """Send it as far as it is taken; all that comes back."""
    got = b""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as s:
        for at in range(0, len(data), 65536):
            try:
                s.sendall(data[at : at + 65536])
            except ConnectionError:
                break
        try:
            while piece := s.recv(65536):
                got += piece
        except ConnectionError:
            pass
    return got


def error_of(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower(), answer
    error = json.loads(body)["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def test_heads_are_limited_while_they_are_read(tmp_path: Path, hosts: Hosts) -> None:
    refused = [
        (b"GET /" + b"a" * 10_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "65536"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nx: y\r\n" + b" folded\r\n" * 400_000 + b"\r\n", 431, "1000"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nx: y\r\n folded\r\n\r\n", 400, "folded"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"via: 1.1 x\r\n" * 340_000 + b"\r\n", 431, "1000"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"a b " * 8_000_000, 431, "1048576"),
        (b"GET / HTTP/1.1\r\nHost: " + "é".encode() * 50_000 + b"\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/7\r\nHost: x\r\n\r\n", 505, "HTTP/7"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "content-length"),
    ]
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={hosts.start('one').url}") as proxy:
        proxy.wait_online("one")
        for data, status, words in refused:
            answer = exchange(proxy, data)
            assert answer.startswith(b"HTTP/1.1 %d " % status), (data[:50], answer[:200])
            assert words in error_of(answer)
        openai = exchange(proxy, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx:" + b"y" * 2_000_000)
        assert json.loads(openai.partition(b"\r\n\r\n")[2])["error"]["message"].startswith("the headers are larger")
        assert proxy.generate().status_code == 200
        wait_until(lambda: proxy.introspect()["clients"] == 1, "the refused connections are closed")
        assert "Traceback" not in proxy.log
        assert len(proxy.log) < 100_000


def test_requests_that_are_sent_ahead_are_all_answered(tmp_path: Path, hosts: Hosts) -> None:
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={hosts.start('one').url}") as proxy:
        proxy.wait_online("one")
        for path in (b"/", b"/api/agents"):
            request = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path
            last = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path
            assert exchange(proxy, request * 499 + last).count(b"HTTP/1.1 200 OK\r\n") == 500
        assert "RecursionError" not in proxy.log
        assert "crashed" not in proxy.log


def test_a_chunk_line_without_an_end_is_refused(tmp_path: Path, hosts: Hosts) -> None:
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={hosts.start('one').url}") as proxy:
        proxy.wait_online("one")
        head = b"POST /api/generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        for body in (b"1;" + b"x" * 20_000_000, b"1\r\n{\r\n0\r\n" + b"x: y\r\n" * 400_000):
            assert b"HTTP/1.1 200" not in exchange(proxy, head + body)
        assert proxy.generate().status_code == 200
        assert "Traceback" not in proxy.log
        assert proxy.introspect()["contexts"] == 0


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running_proxy(tmp_path_factory.mktemp("limited")) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("path", "length", "status", "words"),
    [
        ("/api/generate", b"%d" % (MAX_BODY + 1), 413, f"{MAX_BODY} bytes"),
        ("/v1/messages", b"9" * 18, 413, f"{MAX_BODY} bytes"),
        ("/api/chat", b"9" * 5000, 400, "digits"),
        ("/api/agents", b"%d" % (MAX_BODY_BYTES + 1), 413, f"{MAX_BODY_BYTES} bytes"),
        ("/api/chat", "²".encode(), 400, "ontent-"),
        ("/api/chat", b"+5", 400, "ontent-"),
        ("/api/chat", b"5, 6", 400, "ontent-"),
    ],
)
def test_a_body_that_is_too_large_is_refused_at_its_head(
    limited: Proxy, path: str, length: bytes, status: int, words: str
) -> None:
    """Nothing of the body is sent, or waited for."""
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n" % (path.encode(), TOKEN.encode())
    answer = b""
    with socket.create_connection(("127.0.0.1", limited.port), timeout=30) as s:
        s.sendall(head + b"Expect: 100-continue\r\nContent-Length: %s\r\n\r\n" % length)
        while not answer.endswith(b"}"):
            piece = s.recv(65536)
            assert piece, answer
            answer += piece
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert words in error_of(answer)
    wait_until(lambda: limited.introspect()["contexts"] == 0, "nothing is left")
    assert "Traceback" not in limited.log


def test_a_body_as_large_as_it_may_be_is_waited_for(limited: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", limited.port), timeout=30) as s:
        s.sendall(b"POST /api/agents HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n")
        s.sendall(b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n" % (TOKEN.encode(), MAX_BODY_BYTES))
        assert s.recv(65536).startswith(b"HTTP/1.1 100 ")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 300_000 + b"\r\n", id="many fields"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000_000, id="a field without an end"),
        pytest.param(b"HTTP/1.1 200 " + b"y" * 20_000_000, id="a status line without an end"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: y\r\n folded\r\n\r\n", id="a continued line"),
    ],
)
def test_a_host_whose_head_is_too_large_is_replaced(tmp_path: Path, hosts: Hosts, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(int(lengths[0][15:]) if lengths else 0)
            if head.startswith(b"GET"):
                body = TAGS if b"/api/tags" in head else b'{"models":[],"version":"1"}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            else:
                writer.write(answer)
            await writer.drain()

    bad, good = RawHost(hosts, serve), hosts.start("good", "m")
    options = ("--set", f"balancer_agents=bad={bad.url},good={good.url}", "--set", "balancer_mode=metrics")
    with running_proxy(tmp_path, *options) as proxy:
        proxy.wait_online("bad", "good")
        proxy.report("bad", cpu=1)
        proxy.report("good", cpu=60)
        response = proxy.generate("m")
        assert response.status_code == 200, response.text
        assert response.headers["X-Balancer-Agent"] == "good"
        assert response.headers["X-Balancer-Attempts"] == "2"
        assert "Traceback" not in proxy.log
        assert len(proxy.log) < 100_000
    bad.stop()


def begun(proxy: Proxy, path: str, size: int) -> socket.socket:
    """A request of which the body comes up to its last byte."""
    body = b'{"model":"llama3.2","prompt":"' + b"x" * (size - 32) + b'"}'
    s = socket.create_connection(("127.0.0.1", proxy.port), timeout=30)
    s.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)))
    s.sendall(body[:-1])
    return s


def test_bodies_together_take_no_more_memory_than_they_may(tmp_path: Path, hosts: Hosts) -> None:
    options = ("--set", f"balancer_agents=one={hosts.start('one').url}", "--set", "balancer_memory=8m")
    with running_proxy(tmp_path, *options) as proxy:
        proxy.wait_online("one")
        three = [begun(proxy, "/api/generate", 2_500_000) for _ in range(3)]
        wait_until(lambda: proxy.introspect()["memory"] >= 7_500_000, "the bodies are there")
        late = begun(proxy, "/v1/messages", 1_500_000)
        answer = b""
        while not answer.endswith(b"}"):
            piece = late.recv(65536)
            assert piece, answer
            answer += piece
        assert answer.startswith(b"HTTP/1.1 503 "), answer
        assert b"retry-after: " in answer.lower()
        assert "balancer_memory" in error_of(answer)
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "error", "in the caller's protocol"
        late.close()
        assert proxy.generate().status_code == 200, "what is small has room"
        three[0].sendall(b"}")
        assert three[0].recv(65536).startswith(b"HTTP/1.1 200 OK")
        for client in three:
            client.close()
        wait_until(lambda: proxy.introspect()["memory"] == 0, "all is given back, whether it was answered or aborted")
        assert proxy.introspect()["contexts"] == 0


def test_answers_are_passed_on_where_there_is_no_memory_to_hold_or_keep_them(tmp_path: Path, hosts: Hosts) -> None:
    text = b'{"response":"' + b"x" * 3_000_000 + b'","done":true}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(int(lengths[0][15:]) if lengths else 0)
            body = (
                text if head.startswith(b"POST") else TAGS if b"/api/tags" in head else b'{"models":[],"version":"1"}'
            )
            kind = b"application/json"
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (kind, len(body), body)
            )
            await writer.drain()

    host = RawHost(hosts, serve)
    options = ("--set", f"balancer_agents=one={host.url}", "--set", "balancer_memory=1m")
    with running_proxy(tmp_path, *options) as proxy:
        proxy.wait_online("one")
        for _ in range(3):
            response = proxy.generate("m")
            assert response.status_code == 200
            assert response.content == text
        wait_until(lambda: proxy.introspect()["memory"] == 0, "all is given back")
        assert proxy.agents()["one"]["stats"]["succeeded"] == 3
    host.stop()
