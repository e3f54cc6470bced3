"""Compressed answers of a host that stands behind a server which compresses, and compressed requests."""

from __future__ import annotations

import asyncio
import json
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from mitmproxy import http, io

from tests.e2e.harness import Hosts, Proxy, RawHost, running_proxy, wait_until
from tests.packing import BITS, ENCODINGS, Packer, header_of, packed

NDJSON, SSE, JSON = b"application/x-ndjson", b"text/event-stream", b"application/json"
TOKEN = b'{"model":"llama3.2","response":" a","done":false}\n'
FINAL = b'{"model":"llama3.2","response":"","done":true,"eval_count":20,"eval_duration":1000000000}\n'
ASKED = {"model": "llama3.2", "prompt": "x"}


class PackingHost:
    """Answers the balancer's probes itself, and each request with what the test's `answer` yields, piece by piece."""

    def __init__(self) -> None:
        self.head = b""
        self.answer: Callable[[], Iterator[bytes]] = lambda: iter(())
        self.go_on = threading.Event()
        self.requests: list[tuple[bytes, bytes]] = []
        self.chunked = True
        self.ends = True
        """Whether the answer's last chunk is sent."""

    def answers(self, encoding: str, content_type: bytes, *pieces: bytes, finishes: bool = True) -> None:
        """Compress and flush these; the second one waits for `go_on`."""
        self.chunked = self.ends = True
        self.go_on.set()
        self.requests.clear()
        self.head = b"Content-Type: %s\r\nContent-Encoding: %s\r\n" % (content_type, header_of(encoding).encode())

        def packed_pieces() -> Iterator[bytes]:
            packer = Packer(encoding)
            yield from map(packer.add, pieces)
            if finishes and (end := packer.end()):
                yield end

        self.answer = packed_pieces

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            body = await reader.readexactly(int(length or 0))
            if b"user-agent: ollama-balancer" in head:
                models = b'{"name":"llama3.2:latest"}' if b"/api/tags" in head else b""
                listed = b'{"version":"0.33.0","models":[%s]}' % models
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(listed), listed))
                continue
            self.requests.append((head, body))
            if not self.chunked:
                whole = b"".join(self.answer())
                writer.write(b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s" % (self.head, len(whole), whole))
                continue
            writer.write(b"HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\n" % self.head)
            for piece in self.answer():
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
                await asyncio.to_thread(self.go_on.wait)
            if not self.ends:
                return
            writer.write(b"0\r\n\r\n")


@pytest.fixture(scope="module")
def host() -> PackingHost:
    return PackingHost()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, host: PackingHost) -> Iterator[Proxy]:
    hosts = Hosts()
    raw = RawHost(hosts, host.serve)
    try:
        with running_proxy(tmp_path_factory.mktemp("conf"), "--set", f"balancer_agents=a={raw.url}") as proxy:
            proxy.wait_online("a")
            yield proxy
    finally:
        raw.stop()
        hosts.stop()


def stats(proxy: Proxy) -> dict[str, Any]:
    counts: dict[str, Any] = proxy.agents()["a"]["stats"]
    return counts


def counted(proxy: Proxy, before: dict[str, Any], outcome: str) -> None:
    """One request more has ended like that, and no other way."""
    wait_until(lambda: stats(proxy)[outcome] == before[outcome] + 1, outcome)
    after = stats(proxy)
    assert after["succeeded"] + after["failed"] == before["succeeded"] + before["failed"] + 1
    assert proxy.introspect()["in_flight"] == {"a": 0}


@pytest.mark.parametrize("encoding", [*ENCODINGS, "compress"])
def test_a_compressed_stream_is_passed_on_as_it_comes_byte_for_byte(
    proxy: Proxy, host: PackingHost, encoding: str
) -> None:
    known = encoding != "compress"
    host.answers(encoding if known else "gzip", NDJSON, TOKEN, TOKEN, FINAL)
    if not known:
        host.head = host.head.replace(b"gzip", b"compress")
    host.go_on.clear()
    before = stats(proxy)
    with proxy.http.stream("POST", "/api/generate", json=ASKED, headers={"Accept-Encoding": "gzip, x"}) as response:
        assert response.headers["Content-Encoding"] == header_of(encoding)
        raw = response.iter_raw()
        came = next(raw)  # the host waits until this has been read
        host.go_on.set()
        came += b"".join(raw)
    assert came == b"".join(host.answer())
    assert b"accept-encoding: gzip, x\r\n" in host.requests[0][0]
    counted(proxy, before, "succeeded")
    if known:
        assert stats(proxy)["tokens_per_second"]["llama3.2:latest"] == pytest.approx(20, rel=0.2)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("chunked", [True, False])
def test_a_compressed_answer_that_is_no_stream_is_passed_on_and_judged(
    proxy: Proxy, host: PackingHost, encoding: str, chunked: bool
) -> None:
    for text, outcome in ((FINAL, "succeeded"), (b'{"error":"the runner died"}', "failed")):
        host.answers(encoding, JSON, text)
        host.chunked = chunked
        before = stats(proxy)
        with proxy.http.stream("POST", "/api/generate", json=ASKED | {"stream": False}) as response:
            assert b"".join(response.iter_raw()) == b"".join(host.answer())
        counted(proxy, before, outcome)


@pytest.mark.parametrize("encoding", BITS)
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize(("path", "content_type"), [("/api/generate", NDJSON), ("/v1/chat/completions", SSE)])
def test_a_compressed_stream_that_breaks_off_ends_with_the_error_event_in_it(
    proxy: Proxy, host: PackingHost, encoding: str, ends: bool, path: str, content_type: bytes
) -> None:
    event = TOKEN if content_type == NDJSON else b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    host.answers(encoding, content_type, event, event, event[:20], finishes=False)
    host.ends = ends
    before = stats(proxy)
    with proxy.http.stream("POST", path, json=ASKED | {"messages": [], "stream": True}) as response:
        body = b"".join(response.iter_raw())
    reader = zlib.decompressobj(BITS[encoding])
    text = reader.decompress(body)
    assert reader.eof
    assert text.startswith(event + event + event[:20])
    last = text.splitlines()[-1] or text.splitlines()[-2]
    assert "error" in json.loads(last.removeprefix(b"data: "))
    counted(proxy, before, "failed")


@pytest.mark.parametrize("encoding", BITS)
@pytest.mark.parametrize("ends", [True, False])
def test_a_compressed_stream_that_lacks_its_end_after_the_terminal_event_gets_it(
    proxy: Proxy, host: PackingHost, encoding: str, ends: bool
) -> None:
    host.answers(encoding, NDJSON, TOKEN, FINAL, finishes=False)
    host.ends = ends
    before = stats(proxy)
    with proxy.http.stream("POST", "/api/generate", json=ASKED) as response:
        body = b"".join(response.iter_raw())
    reader = zlib.decompressobj(BITS[encoding])
    assert reader.decompress(body) == TOKEN + FINAL
    assert reader.eof
    counted(proxy, before, "succeeded")


def is_cut_off(proxy: Proxy) -> None:
    """The client of a stream."""
    before = stats(proxy)
    with (
        pytest.raises(httpx.RemoteProtocolError),
        proxy.http.stream("POST", "/api/generate", json=ASKED) as response,
    ):
        for _ in response.iter_raw():
            pass
    counted(proxy, before, "failed")


@pytest.mark.parametrize("encoding", ["br", "zstd"])
@pytest.mark.parametrize("ends", [True, False])
def test_where_no_error_event_can_go_into_a_compressed_stream_its_client_is_cut_off(
    proxy: Proxy, host: PackingHost, encoding: str, ends: bool
) -> None:
    host.answers(encoding, NDJSON, TOKEN, TOKEN, finishes=False)
    host.ends = ends
    is_cut_off(proxy)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_client_of_a_compressed_stream_that_ends_without_its_terminal_event_is_cut_off(
    proxy: Proxy, host: PackingHost, encoding: str
) -> None:
    host.answers(encoding, NDJSON, TOKEN, TOKEN)
    is_cut_off(proxy)


def test_the_flow_holds_a_compressed_stream_as_it_reads(tmp_path: Path, host: PackingHost, hosts: Hosts) -> None:
    raw = RawHost(hosts, host.serve)
    saved = tmp_path / "saved.flows"
    with running_proxy(tmp_path, "--set", f"balancer_agents=a={raw.url}", "-w", str(saved)) as proxy:
        proxy.wait_online("a")
        host.answers("br", NDJSON, TOKEN, FINAL)
        with proxy.http.stream("POST", "/api/generate", json=ASKED) as response:
            for _ in response.iter_raw():
                pass
    raw.stop()
    with saved.open("rb") as file:
        [flow] = [each for each in io.FlowReader(file).stream() if isinstance(each, http.HTTPFlow)]
    assert flow.response is not None
    assert flow.response.content == TOKEN + FINAL
    assert "content-encoding" not in flow.response.headers


def test_a_bomb_is_passed_on_as_it_came(proxy: Proxy, host: PackingHost) -> None:
    host.answers("gzip", NDJSON, TOKEN, bytes(200_000_000), FINAL)
    before = stats(proxy)
    with proxy.http.stream("POST", "/api/generate", json=ASKED) as response:
        assert sum(map(len, response.iter_raw())) < 1_000_000
    counted(proxy, before, "succeeded")


@pytest.mark.parametrize("path", ["/api/pull", "/api/create", "/api/copy"])
def test_what_goes_to_every_host_asks_for_answers_as_they_are(proxy: Proxy, host: PackingHost, path: str) -> None:
    host.answers("gzip", JSON, b'{"status":"success"}')
    host.head = b"Content-Type: application/json\r\n"
    host.answer = lambda: iter([b'{"status":"success"}'])
    answer = proxy.http.post(path, json={"model": "x", "stream": False}, headers={"Accept-Encoding": "gzip, br"})
    assert (answer.status_code, answer.json()) == (200, {"status": "success"})
    [(head, _)] = host.requests
    assert b"accept-encoding: identity\r\n" in head
    assert head.count(b"accept-encoding") == 1


def test_a_host_that_compresses_such_an_answer_all_the_same_has_failed(proxy: Proxy, host: PackingHost) -> None:
    host.answers("gzip", JSON, b'{"status":"success"}')
    answer = proxy.http.post("/api/pull", json={"model": "x", "stream": False})
    assert answer.status_code == 502
    assert "compressed" in answer.json()["error"]


def test_a_request_compressed_with_zstd_is_routed_by_its_model_and_passed_on_as_it_came(
    tmp_path: Path, hosts: Hosts
) -> None:
    other, host = hosts.start("other", "qwen3"), hosts.start("with", "llama3.2")
    agents = f"other={other.url},with={host.url}"
    with running_proxy(tmp_path, "--set", f"balancer_agents={agents}", "--set", "balancer_slots=1") as proxy:
        proxy.wait_online("other", "with")
        body = packed("zstd", json.dumps({"model": "llama3.2", "input": "hi"}).encode())
        headers = {"Content-Encoding": "zstd", "Content-Type": "application/json"}
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{proxy.url}/v1/responses", content=body, headers=headers, timeout=30))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [(answer.status_code, answer.headers["X-Balancer-Agent"]) for answer in answers] == [(200, "with")] * 6
        received = [each for each in host.requests if each.path == "/v1/responses"]
        assert {each.body for each in received} == {body}
        assert all({k.lower(): v for k, v in each.headers}["content-encoding"] == "zstd" for each in received)
        refused = proxy.http.post("/v1/responses", content=body[:-2], headers=headers)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith("failed to decompress request body")
        bomb = packed("zstd", b'{"model":"llama3.2","x":"' + b"x" * 50_000_000 + b'"}')
        assert proxy.http.post("/v1/responses", content=bomb, headers=headers).status_code == 413
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0)
        assert client.responses.create(model="llama3.2", input="hi").output_text  # the connection is whole


def test_bodies_that_cannot_be_read_run_nothing(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("a")
    with running_proxy(tmp_path, "--set", f"balancer_agents=a={host.url}", "--set", "balancer_slots=1") as proxy:
        proxy.wait_online("a")
        unreadable = b'{"x":[' + b"[]," * 60_000 + b'[]],"model":"llama3.2","prompt":"x"}'
        assert proxy.http.post("/api/generate", content=unreadable).status_code == 400
        gzip = packed("gzip", json.dumps(ASKED).encode())
        refused = proxy.http.post("/api/generate", content=gzip, headers={"Content-Encoding": "gzip"})
        assert refused.json() == {"error": r"invalid character '\x1f' looking for beginning of value"}
        assert [each for each in host.requests if each.inference] == []
        assert proxy.introspect()["in_flight"] == {"a": 0}
