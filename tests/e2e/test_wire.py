"""HTTP as clients really speak it: pipelines, half-closed and kept connections, and answers of every framing."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_balancer.simulator import SimulatedOllama, Timing
from tests.e2e.harness import PATIENCE, Hosts, Proxy, RawHost, running_proxy, wait_until

GENERATE = b'{"model": "llama3.2", "prompt": "hello", "stream": %s}'
SLOW = Timing(load=0.0, prefill_rate=1e6, decode_rate=1.0, output_tokens=1000, num_parallel=8)
BIG = 5 * 1024 * 1024


def post(body: bytes, *headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST /api/generate HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Raw:
    """A host that answers the requests it is sent with `answer`, and closes after it where `close` says so."""

    answer: bytes = b""
    close: bool = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"post"):
                names = b'{"version":"1"}' if b"version" in head else b'{"models":[{"name":"raw"}]}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(names), names))
                continue
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r")[0]))
            writer.write(self.answer)
            await writer.drain()
            if self.close:
                return


@dataclass
class Scene:
    proxy: Proxy
    one: SimulatedOllama
    two: SimulatedOllama
    raw: Raw

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.proxy.port), timeout=PATIENCE)

    def ask_raw(self, answer: bytes, *, close: bool = False) -> httpx.Response:
        self.raw.answer, self.raw.close = answer, close
        return self.proxy.generate("raw")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    hosts = Hosts()
    raw = Raw()
    raw_host = RawHost(hosts, raw.serve)
    try:
        one, two = hosts.start("one"), hosts.start("two")
        agents = f"one={one.url},two={two.url},raw={raw_host.url}"
        with running_proxy(
            tmp_path_factory.mktemp("conf"),
            "--set",
            f"balancer_agents={agents}",
            "--set",
            "balancer_origins=https://*.chat.test",
        ) as proxy:
            proxy.wait_online("one", "two", "raw")
            yield Scene(proxy, one, two, raw)
    finally:
        raw_host.stop()
        hosts.stop()


def answers(s: socket.socket, count: int) -> list[Any]:
    """The JSON of so many answers on one connection."""
    found = []
    for _ in range(count):
        response = HTTPResponse(s, method="POST")
        # The next answer may already be there: nothing of it may be read with this one.
        response.fp.close()
        response.fp = UnbufferedReader(s)  # type: ignore[assignment]
        response.begin()
        assert response.status == 200
        found.append(json.loads(response.read()))
    return found


class UnbufferedReader:
    """Reads no byte more than it is asked for."""

    def __init__(self, s: socket.socket) -> None:
        self.socket = s

    def readline(self, limit: int = -1) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            line += self.read(1)
        return line

    def read(self, size: int = -1) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more
            data += more
        return data

    def readinto(self, buffer: memoryview) -> int:
        data = self.read(len(buffer))
        buffer[:] = data
        return len(data)

    def close(self) -> None:
        pass

    def flush(self) -> None:
        pass


def test_pipelined_requests_are_answered_in_order_on_one_connection(scene: Scene) -> None:
    with scene.connect() as s:
        prompts = ["a", "b", "c", "d", "e"]
        s.sendall(b"".join(post(GENERATE.replace(b"hello", p.encode()) % b"false") for p in prompts))
        texts = [answer["response"] for answer in answers(s, len(prompts))]
    assert texts == [scene.one.expected_text(prompt) for prompt in prompts]


def test_a_kept_connection_is_used_again_after_a_stream_and_an_error(scene: Scene) -> None:
    with httpx.Client(base_url=scene.proxy.url, trust_env=False, verify=False, timeout=PATIENCE) as client:
        for stream in (True, False, True):
            assert client.post("/api/generate", json={"model": "llama3.2", "prompt": "x", "stream": stream}).is_success
            assert client.post("/api/generate", json={"model": "nope"}).status_code == 404
            assert client.get("/nope").status_code == 404
        pool: Any = client._transport
        assert len(pool._pool.connections) == 1


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_half_closed_client_has_cancelled(scene: Scene, version: str) -> None:
    scene.one.timing = scene.two.timing = SLOW
    try:
        with scene.connect() as s:
            s.sendall(post(GENERATE % b"true", version=version))
            assert b" 200 " in s.recv(65536).partition(b"\r\n")[0]
            s.shutdown(socket.SHUT_WR)
            wait_until(lambda: not scene.one.running and not scene.two.running, "the agent's request is closed")
            while s.recv(65536):
                pass
    finally:
        scene.one.timing = scene.two.timing = Timing(load=0.0, decode_rate=1e6, num_parallel=8)
    wait_until(lambda: not any(agent["in_flight"] for agent in scene.proxy.agents().values()), "the lease is back")


def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_the_connection(scene: Scene) -> None:
    with scene.connect() as s:
        s.sendall(post(GENERATE % b"true", version="1.0"))
        response = HTTPResponse(s, method="POST")
        response.begin()
        assert response.getheader("Transfer-Encoding") is None
        lines = [json.loads(line) for line in response.read().splitlines()]
    assert lines[-1]["done"]


def test_management_streams_to_a_client_of_http_1_0_as_well(scene: Scene) -> None:
    body = b'{"model": "llama3.2"}'
    with scene.connect() as s:
        s.sendall(
            b"POST /api/pull HTTP/1.0\r\nX-Balancer-Agent: one\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        response = HTTPResponse(s, method="POST")
        response.begin()
        assert response.getheader("Transfer-Encoding") is None
        assert json.loads(response.read().splitlines()[-1]) == {"status": "success"}


def test_a_client_may_wait_for_leave_to_send_its_body(scene: Scene) -> None:
    head, _, body = post(GENERATE % b"false", "Expect: 100-continue").partition(b"\r\n\r\n")
    with scene.connect() as s:
        s.sendall(head + b"\r\n\r\n")
        assert s.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        s.sendall(body)
        assert answers(s, 1)[0]["done"]


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
WHOLE = b'{"response":"%s","done":true}'


def test_a_long_answer_that_is_no_stream_passes_whatever_its_framing(scene: Scene) -> None:
    body = WHOLE % (b"x" * BIG)
    known = scene.ask_raw(JSON_HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    assert known.content == body
    assert scene.ask_raw(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body)).content == body
    assert scene.ask_raw(JSON_HEAD + b"\r\n" + body, close=True).content == body
    stats = scene.proxy.agents()["raw"]["stats"]
    assert (stats["succeeded"], stats["failed"]) == (3, 0)


def test_an_answer_in_chunks_that_is_no_stream_and_breaks_off_is_a_clean_502(scene: Scene) -> None:
    broken = scene.ask_raw(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1000\r\n" + b"x" * 100, close=True)
    assert broken.status_code == 502
    assert "raw: " in broken.json()["error"]


def test_a_model_that_an_agent_no_longer_has_is_found_elsewhere_and_its_list_corrected(
    scene: Scene, tmp_path: Path, hosts: Hosts
) -> None:
    gone, has = hosts.start("gone", "other"), hosts.start("has", "wanted")
    with running_proxy(tmp_path, "--set", "balancer_mode=roundrobin") as proxy:
        for host in (gone, has):
            proxy.register(host.name, host.url)
        wait_until(lambda: all(agent["models"] for agent in proxy.agents().values()), "both were asked")
        for host in (gone, has):
            assert proxy.report(host.name, models=["wanted"]).status_code == 204
        answered = [proxy.generate("wanted") for _ in range(4)]
        assert {answer.status_code for answer in answered} == {200}
        assert {answer.headers["X-Balancer-Agent"] for answer in answered} == {"has"}
        assert sorted(answer.headers["X-Balancer-Attempts"] for answer in answered) == ["1", "1", "1", "2"]
        wait_until(lambda: proxy.agents()["gone"]["models"] == ["other:latest"], "its list is what it really has")
        assert (proxy.agents()["gone"]["status"], proxy.agents()["gone"]["stats"]["failed"]) == ("online", 0)
        # Nobody has it any more: the words are the last agent's own.
        assert proxy.report("gone", models=["nothing"]).status_code == 204
        nobody = proxy.generate("nothing")
        assert (nobody.status_code, nobody.json()) == (404, {"error": "model 'nothing' not found"})
        assert nobody.headers["X-Balancer-Agent"] == "gone"
        assert proxy.generate("nothing").headers.get("X-Balancer-Agent") is None


def test_origins_that_are_allowed_by_option_may_call(scene: Scene) -> None:
    http = scene.proxy.http
    body = {"model": "llama3.2", "prompt": "x", "stream": False}
    allowed = http.post("/api/generate", json=body, headers={"Origin": "https://my.chat.test"})
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://my.chat.test"
    preflight = http.options(
        "/api/generate",
        headers={"Origin": "https://my.chat.test", "Access-Control-Request-Method": "POST"},
    )
    assert preflight.status_code == 204
    assert "X-Balancer-Agent" in preflight.headers["Access-Control-Allow-Headers"]
    assert http.post("/api/generate", json=body, headers={"Origin": "https://chat.test"}).status_code == 403


def test_redirects_lead_where_they_say(scene: Scene) -> None:
    with httpx.Client(
        base_url=scene.proxy.url, trust_env=False, verify=False, timeout=PATIENCE, follow_redirects=True
    ) as client:
        assert client.get("/api/tags/").json()["models"]
        assert client.get(scene.proxy.url + "//api/version").json()["version"]
        posted = client.post("/api/generate/", json={"model": "llama3.2", "prompt": "x", "stream": False})
        assert posted.json()["done"]
        assert [step.status_code for step in posted.history] == [307]
