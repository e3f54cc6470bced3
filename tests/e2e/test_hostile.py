"""Requests and hosts that mean harm, or are merely broken."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import h2.connection
import h2.events
import pytest

from tests.e2e.harness import TOKEN, Hosts, Proxy, RawHost, running_proxy, wait_until

VERSION = b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"version":"1.0"}'
TAGS = b'HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n{"models":[{"name":"m"}]}'.replace(b"24", b"25")
DONE = b'{"model":"m","response":"x","done":true}\n'
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n%s" % (len(DONE), DONE)


def host_that(hosts: Hosts, answer: bytes, received: list[bytes] | None = None, *, close: bool = False) -> RawHost:
    """A host that is well but for inference, which it answers with those bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
            await reader.readexactly(length[0] if length else 0)
            if received is not None and (b"x-mark: 1" in lines or not head.startswith(b"GET")):
                received.append(head)
            if head.startswith((b"GET /api/version", b"GET /api/tags", b"GET /api/ps")):
                writer.write(VERSION if b"version" in head else TAGS)
                continue
            writer.write(answer)
            await writer.drain()
            if close:
                return

    return RawHost(hosts, serve)


def raw(proxy: Proxy, data: bytes, until: bytes = b"") -> bytes:
    """Send bytes; what comes back until the connection closes, or until those bytes have come."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as s:
        s.sendall(data)
        got = b""
        while not until or until not in got:
            piece = s.recv(65536)
            if not piece:
                break
            got += piece
        return got


@pytest.mark.parametrize("named", ["content-length", "Content-Length, x", "transfer-encoding"])
def test_a_connection_header_cannot_make_an_agent_read_one_request_as_two(
    tmp_path: Path, hosts: Hosts, named: str
) -> None:
    received: list[bytes] = []
    host = host_that(hosts, WHOLE, received)
    hidden = b"DELETE /api/delete HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with running_proxy(tmp_path, "--set", f"balancer_agents=raw={host.url}") as proxy:
        proxy.wait_online("raw")
        for method, path in (("POST", "/api/generate"), ("GET", "/api/version")):
            start = f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-Mark: 1\r\nConnection: {named}\r\n".encode()
            if named == "transfer-encoding":
                framed = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden)
            else:
                framed = b"Content-Length: %d\r\n\r\n%s" % (len(hidden), hidden)
            assert b" 200 OK" in raw(proxy, start + framed, until=b"}")
        assert proxy.introspect()["contexts"] == 0
    host.stop()
    assert received, "the agent saw the requests"
    assert not [head for head in received if head.startswith(b"DELETE")]
    assert all(b"content-length: %d" % len(hidden) in head.lower() for head in received)


def test_a_client_that_asks_to_close_is_closed(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        body = b'{"model": "llama3.2", "prompt": "x", "stream": false}'
        head = b"POST /api/generate HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert raw(proxy, head + body).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0.0.0.0"])
def test_an_agent_that_is_the_balancer_itself_gets_nothing(tmp_path: Path, hosts: Hosts, host: str) -> None:
    with running_proxy(tmp_path) as proxy:
        proxy.register("itself", f"http://{host}:{proxy.port}")
        proxy.report("itself", models=["m"])
        found_out = "is the balancer itself"
        wait_until(lambda: found_out in proxy.agents()["itself"]["reason"], "it is found out", seconds=15)
        assert "Agent itself" in proxy.log
        response = proxy.generate("m", headers={"X-Balancer-Agent": "itself"})
        assert response.status_code == 503
        assert "agent 'itself' is unreachable: " in response.text
        assert "give the host and port that Ollama listens on" in response.text
        assert proxy.agents()["itself"]["stats"]["requests"] == 0
        assert proxy.agents()["itself"]["in_flight"] == 0


def http2_statuses(port: int, count: int) -> list[str]:
    """The status of that many prompts, sent at once over one HTTP/2 connection."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    body = b'{"model": "llama3.2", "prompt": "x", "stream": false}'
    statuses: dict[int, str] = {}
    ended: set[int] = set()
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as s,
    ):
        assert s.selected_alpn_protocol() == "h2"
        connection = h2.connection.H2Connection()
        connection.initiate_connection()
        for _ in range(count):
            stream = connection.get_next_available_stream_id()
            head = [(":method", "POST"), (":path", "/api/generate"), (":scheme", "https"), (":authority", "x")]
            connection.send_headers(stream, head)
            connection.send_data(stream, body, end_stream=True)
        while len(ended) < count:
            s.sendall(connection.data_to_send())
            for event in connection.receive_data(s.recv(65536)):
                if isinstance(event, h2.events.ResponseReceived):
                    statuses[event.stream_id] = dict(event.headers)[b":status"].decode()
                elif isinstance(event, h2.events.StreamEnded):
                    ended.add(event.stream_id)
    return list(statuses.values())


def test_an_http2_client_may_have_many_requests_at_one_agent(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")

    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        assert http2_statuses(proxy.port, 20) == ["200"] * 20
        wait_until(lambda: proxy.agents()["one"]["in_flight"] == 0, "all have ended")


def test_huge_and_malformed_names_are_refused_and_stay_short_everywhere(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    saved = tmp_path / "flows"
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}", "-w", str(saved)) as proxy:
        proxy.wait_online("one")
        huge = proxy.generate("x" * 3_000_000)
        assert huge.status_code == 404
        assert len(huge.content) < 1000
        content = b'{"model": "\\ud800\\u001b[31mRED\\nFORGED", "prompt": "x"}'
        assert proxy.http.post("/api/generate", content=content).status_code == 404
        assert proxy.http.get("/v1/models/%FF").status_code == 404
        assert proxy.generate().status_code == 200
    assert "\x1b[31m" not in proxy.log
    assert not any(line.startswith("FORGED") for line in proxy.lines)
    assert "Traceback" not in proxy.log
    assert len(proxy.log) < 100_000
    assert saved.stat().st_size > 3_000_000  # the huge request is in the file, and so the others


@pytest.mark.usefixtures("either_way")
def test_trailers_are_dropped_and_harm_nobody(tmp_path: Path, hosts: Hosts) -> None:
    chunked = b"%x\r\n%s\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(DONE), DONE)
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked
    host = host_that(hosts, answer)
    with running_proxy(tmp_path, "--set", f"balancer_agents=raw={host.url}") as proxy:
        proxy.wait_online("raw")
        for _ in range(2):
            assert proxy.http.post("/api/generate", json={"model": "m"}).content == DONE
        body = b'{"model": "m"}'
        request = (
            b"POST /api/generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            b"%x\r\n%s\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(body), body)
        )
        assert DONE in raw(proxy, request)
        assert "crashed" not in proxy.log
    host.stop()


ENDLESS = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(b"HTTP/1.1 503 Busy\r\nContent-Length: 400000\r\n\r\n" + b"x" * 400_000, id="long"),
        pytest.param(ENDLESS + b"1\r\nx\r\n", id="never-ending"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 200 + WHOLE, id="informational"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", id="upgrade"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n\r\n", id="garbage"),
        pytest.param(b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", id="malformed"),
    ],
)
def test_a_host_that_answers_badly_before_any_token_is_replaced(tmp_path: Path, hosts: Hosts, refusal: bytes) -> None:
    host, good = host_that(hosts, refusal), hosts.start("good", "m")
    agents = f"balancer_agents=bad={host.url},good={good.url}"
    options = ("--set", "balancer_mode=metrics", "--set", "termlog_verbosity=debug")
    with running_proxy(tmp_path, "--set", agents, *options) as proxy:
        proxy.wait_online("bad", "good")
        proxy.report("bad", cpu=1)
        proxy.report("good", cpu=60)
        for _ in range(2):
            response = proxy.generate("m")
            assert response.status_code == 200, response.text
            assert response.json()["done"] is True
            assert response.headers["X-Balancer-Agent"] == "good"
            assert response.headers["X-Balancer-Attempts"] == "2"
        assert "crashed" not in proxy.log
        assert {agent["in_flight"] for agent in proxy.agents().values()} == {0}
        assert proxy.introspect()["contexts"] == 0
    host.stop()


@pytest.mark.usefixtures("either_way")
def test_a_malformed_chunk_in_the_middle_ends_with_an_error_event(tmp_path: Path, hosts: Hosts) -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    line = b'{"model":"m","response":"x","done":false}\n'
    host = host_that(hosts, start + b"%x\r\n%s\r\nnonsense\r\n" % (len(line), line))
    with running_proxy(tmp_path, "--set", f"balancer_agents=raw={host.url}") as proxy:
        proxy.wait_online("raw")
        lines = proxy.http.post("/api/generate", json={"model": "m"}).text.splitlines()
        assert json.loads(lines[0])["response"] == "x"
        assert "failed in the middle" in json.loads(lines[-1])["error"]
        assert "crashed" not in proxy.log
        assert "Traceback" not in proxy.log
    host.stop()


def too_large(chunked: bool) -> bytes:
    body = b"z" * 1_500_000
    head = b"POST /api/agents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n" % TOKEN.encode()
    if chunked:
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("make", [lambda: too_large(True), lambda: too_large(False)], ids=["chunked", "length"])
def test_a_refused_body_leaves_no_trace_in_the_log_and_no_authority(
    tmp_path: Path, hosts: Hosts, make: Callable[[], bytes]
) -> None:
    with running_proxy(tmp_path) as proxy:
        assert raw(proxy, make(), until=b"bytes").startswith(b"HTTP/1.1 413")
        assert proxy.introspect()["kept_contexts"] == 0
        assert "zzzz" not in proxy.log
        assert "crashed" not in proxy.log


def test_a_head_that_breaks_off_does_not_bring_its_credentials_into_the_log(tmp_path: Path) -> None:
    with running_proxy(tmp_path) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as s:
            s.sendall(b"POST /api/agents HTTP/1.1\r\nAuthorization: Bearer " + TOKEN.encode())
        wait_until(lambda: "before completing request headers" in proxy.log, "mitmproxy says so")
    assert TOKEN not in proxy.log


def test_a_rebound_name_does_not_make_a_foreign_page_ours(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        evil = {"Host": f"evil.example:{proxy.port}", "Origin": f"http://evil.example:{proxy.port}"}
        assert proxy.http.get("/api/tags", headers=evil).status_code == 403
        ours = {"Origin": proxy.url}
        assert proxy.http.get("/api/tags", headers=ours).status_code == 200


def test_options_that_are_set_anew_do_not_undo_what_operators_did(tmp_path: Path, hosts: Hosts) -> None:
    script = tmp_path / "setting.py"
    script.write_text(
        "from mitmproxy import ctx, http\n"
        "def requestheaders(flow):\n"
        "    if flow.request.path == '/set':\n"
        "        ctx.options.anticache = not ctx.options.anticache\n"
        "        flow.response = http.Response.make(204)\n"
    )
    agents = f"balancer_agents=a={hosts.start('a').url},b={hosts.start('b').url}"
    with running_proxy(tmp_path, "--set", agents, "-s", str(script)) as proxy:
        assert proxy.control("DELETE", "/api/agents/b").status_code == 204
        proxy.wait_online("a")
        assert proxy.control("POST", "/api/agents/a/drain", {"until": "registration"}).json()["status"] == "draining"
        assert proxy.http.get("/set").status_code == 204
        assert {name: agent["status"] for name, agent in proxy.agents().items()} == {"a": "draining"}


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"G\xffT / HTTP/1.1\r\n", 405),
        (b"\xff\xff /api/agents HTTP/1.1\r\n", 405),
        (b"GET /\xff\xfe HTTP/1.1\r\n", 404),
        (b"GET /api/agents/\xff HTTP/1.1\r\n", 404),
        (b"GET /dashboard\xff HTTP/1.1\r\n", 404),
        (b"GET /v1/models/\xff HTTP/1.1\r\n", 404),
        (b"GET /a\rb HTTP/1.1\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\n", 400),
        (b"GET /\x1b[31m HTTP/1.1\r\n", 400),
        (b"GET /\xc2\x9b31m HTTP/1.1\r\n", 400),
        (b"GET / HTTP/3.7\r\n", 505),
        (b"GET / HTTP/1.1\r\nX: a\rb\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: a\x00b\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: a\x9b\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: caf\xc3\xa9\r\n", 200),
        (b"GET / HTTP/1.1\r\nX: caf\xe9\r\n", 200),
    ],
)
def test_bytes_that_no_head_may_have_are_refused(proxy_of_one: Proxy, head: bytes, status: int) -> None:
    answer = raw(proxy_of_one, head + b"Host: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"text/html" not in answer
    assert b"Traceback" not in proxy_of_one.log.encode()
    assert "\x1b" not in proxy_of_one.log
    assert "\x9b" not in proxy_of_one.log


@pytest.fixture(scope="module")
def proxy_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    hosts = Hosts()
    host = hosts.start("one")
    with running_proxy(tmp_path_factory.mktemp("one"), "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        yield proxy
    hosts.stop()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 \x1b[31mRED\r\nContent-Length: 2\r\n\r\n{}", 200),
        (b"HTTP/1.1 200 \xc2\x9b31mRED\r\nContent-Length: 2\r\n\r\n{}", 200),
        (b"HTTP/1.1 999 X\r\nContent-Length: 2\r\n\r\n{}", 502),
        (b"HTTP/1.1 2000 X\r\nContent-Length: 2\r\n\r\n{}", 502),
        (b"HTTP/3.7 200 OK\r\nContent-Length: 2\r\n\r\n{}", 502),
        (b"HTTP/1.1 200 OK\r\nX: a\x1b[31m\r\nContent-Length: 2\r\n\r\n{}", 502),
        (b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\n{}", 502),
        (b"HTTP/1.1 200 OK\r\nX: a\xc2\x9b\r\nContent-Length: 2\r\n\r\n{}", 502),
    ],
)
def test_what_a_host_may_not_send_reaches_no_client_and_no_terminal(
    tmp_path: Path, hosts: Hosts, answer: bytes, status: int
) -> None:
    host = host_that(hosts, answer)
    with running_proxy(tmp_path, "--set", f"balancer_agents=raw={host.url}") as proxy:
        proxy.wait_online("raw")
        got = proxy.http.post("/api/show", json={"model": "m"})
        assert got.status_code == status
        assert got.reason_phrase == {200: "OK", 502: "Bad Gateway"}[status]
        assert "x" not in got.headers
    assert "\x1b" not in proxy.log
    assert "\x9b" not in proxy.log
